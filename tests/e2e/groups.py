"""Which tests share a server, and so belong to one of pytest's workers (`make e2e` has two).

By the name of a test alone: who hands out the work has nothing else (marks for pytest-xdist's own
groups have no effect since pytest 9.2). A test in a group too many costs one more server, no more.
"""

from pathlib import PurePosixPath
from typing import Final

FLOAT32: Final = "float32"
BFLOAT16: Final = "bfloat16"
IMAGE: Final = "image"
LONGEST: Final = (FLOAT32, BFLOAT16, IMAGE)  # handed out first, or one worker would end late

_OF_FILE: Final = {
    "test_attribution": FLOAT32,
    "test_callers": FLOAT32,
    "test_disturbance": BFLOAT16,
    "test_numbers": FLOAT32,
    "test_pod": IMAGE,
    "test_privacy": FLOAT32,
    "test_scan": FLOAT32,
    "test_serving_stats": BFLOAT16,
}
_OF_TEST: Final = {
    "test_a_running_tap_is_proven_alive": BFLOAT16,
    "test_bfloat16_serving_is_as_right_as_bfloat16_allows": BFLOAT16,
    "test_a_tap_on_half_of_the_residual_is_caught": "half",
    "test_rows_given_to_a_neighbour_are_caught": "swapped",
}
_EACH_ITS_OWN: Final = ("test_liveness", "test_manners")
_WAYS: Final = ("tensor", "pipeline", "data")  # of test_parallel, a server each


def group_of(nodeid: str) -> str:
    """The group of a test by its id, as `tests/e2e/test_x.py::test_y[z]`."""
    path, _, name = nodeid.partition("::")
    file, test = PurePosixPath(path), name.partition("[")[0]
    if file.parent.name == "image":
        return IMAGE  # built once, in one store
    if test in _OF_TEST:
        return _OF_TEST[test]
    if file.stem == "test_architectures":
        return f"{file.stem}-{name.partition('[')[2].partition('-')[0]}"
    if file.stem == "test_parallel":
        return next((f"{file.stem}-{way}" for way in _WAYS if way in test), file.stem)
    return nodeid if file.stem in _EACH_ITS_OWN else _OF_FILE.get(file.stem, file.stem)
