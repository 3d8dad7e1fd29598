"""Drift of model internals: windows of requests against a baseline, and alarms with a stated rate."""
