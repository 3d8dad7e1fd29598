"""What judges drift: windows in, verdicts out, kept over restarts."""
