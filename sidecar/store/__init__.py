"""What is kept on disk, and how it is read back: nothing torn or foreign is ever believed."""
