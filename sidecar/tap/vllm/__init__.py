"""Seats in vLLM: the only rooms that know it.

plugin (entry point) > worker (engine side) > runner_v1, runner_v2 (rows), and > request_stats
(front end). Read on 0.26, 0.32 and 0.33; anything that does not look like them is refused.
"""
