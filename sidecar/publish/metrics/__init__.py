"""Prometheus exposition: families, their lines, and which of them are rendered."""
