"""Scans: layer x token pictures of the requests that the operator asked for."""
