"""What is wrong with an installation, in plain words, each with its remedy."""
