"""Drift: finished requests and a stored reference go in, verdicts with their causes come out."""
