"""Outward: what was folded, as Prometheus metrics, JSON and health. Only home of the web stack."""
