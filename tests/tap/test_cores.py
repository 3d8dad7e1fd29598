"""Cores: a thread of ours leaves those that an engine has bound its worker to."""

import os
import subprocess
import sys
import textwrap

import pytest

CHILD = textwrap.dedent(
    """
    import os, threading
    from sidecar.tap.cores import unbind

    first = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {first})
    found = []
    def run():
        found.append(os.sched_getaffinity(0))
        unbind()
        found.append(os.sched_getaffinity(0))
    if PARENT_IS_GONE:
        os.getppid = lambda: 2**22 + 1
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    print(*(",".join(map(str, sorted(each))) for each in [*found, os.sched_getaffinity(0)]))
    """
)


def cores_in(child: str) -> list[set[int]]:
    """Of a thread of a bound process: before and after, and of the process itself."""
    run = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    return [set(map(int, each.split(","))) for each in run.stdout.split()]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to tell them apart")
def test_our_thread_may_go_where_the_parent_may() -> None:
    """And the engine's own thread stays where it was bound."""
    before, after, main = cores_in("PARENT_IS_GONE = False" + CHILD)
    assert len(before) == len(main) == 1
    assert after == os.sched_getaffinity(0)


def test_without_a_parent_to_ask_all_stays_as_it_is() -> None:
    """Nothing is raised, and nothing is bound any closer."""
    before, after, main = cores_in("PARENT_IS_GONE = True" + CHILD)
    assert before == after == main
