"""Answers of /v1 as typed JSON, and problems that name their remedy."""
