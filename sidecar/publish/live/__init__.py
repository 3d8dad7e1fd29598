"""What is going on right now: columns of seconds, one sentence, and events as they happen."""
