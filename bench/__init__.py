"""Benchmarks: each prints one table, writes JSON (`--json PATH`), and is short (`--quick`)."""
