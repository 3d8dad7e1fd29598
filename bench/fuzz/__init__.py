"""Strangers' bytes at every door: whatever comes is taken or refused in words, and never more.

A door is whatever reads bytes that somebody else may have made: frames, files, bodies, headers.
Inputs are drawn by hypothesis, which shrinks what breaks a door to its shortest form; those that
ever did are kept in tests/bench/crashers and tried again by the tests.
"""
