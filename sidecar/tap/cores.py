"""Which cores a thread of ours may run on.

A CPU engine binds its worker to the cores that compute, and every thread that the worker starts
inherits that: what our threads do there, the model does not
(docs/decisions/0019-what-a-step-costs.md).
"""

import os
import sys


def unbind() -> None:
    """Let this thread run wherever the parent of this process may, beside where it may already."""
    if sys.platform != "linux":
        return  # nothing is bound there
    try:
        allowed = os.sched_getaffinity(0) | os.sched_getaffinity(os.getppid())
        os.sched_setaffinity(0, allowed)
    except OSError:
        return  # the parent has ended, or may not be asked: bound as we were, all works
