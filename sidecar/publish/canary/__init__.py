"""Known-safe tasks, replayed against the engine."""
