"""Drift of model internals: windows against a baseline, and alarms with a stated rate."""
