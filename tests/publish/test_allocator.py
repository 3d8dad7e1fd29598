"""Large blocks that are freed leave the process."""

import subprocess
import sys

import pytest

# Large blocks with small ones between that stay: from a heap none of the large ones could go.
CHURN = """
import sys
from sidecar.publish.allocator import give_large_blocks_back

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

if sys.argv[1] == "told":
    assert give_large_blocks_back()
first = b"x" * (24 << 20)  # teaches glibc that such blocks are short-lived
del first
before = resident_mb()
large, small = [], []
for _ in range(16):
    large.append(b"x" * (8 << 20))
    small.append(b"x" * 4000)
del large
print(resident_mb() - before)
"""


@pytest.mark.parametrize(("told", "is_kept"), [("told", False), ("as it is", True)])
def test_what_is_freed_leaves_the_process(told: str, *, is_kept: bool) -> None:
    """128 MB between small blocks: glibc as it is keeps a part of them, told so it keeps none."""
    done = subprocess.run(
        [sys.executable, "-c", CHURN, told], capture_output=True, text=True, timeout=60, check=True
    )

    assert (int(done.stdout) > 16) == is_kept
