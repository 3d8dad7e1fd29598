"""Chaos: real sidecars and real senders while something is broken on purpose.

`rank` is the process of one sender, `stand` starts and kills, `journal` and `account` say what
became of every frame, `rows` break one thing each. `python -m bench.chaos` runs them at full size;
tests/chaos runs the same rows small.
"""
