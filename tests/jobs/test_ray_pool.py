"""A real Ray cluster on this machine: the same numbers as here, and errors as they are here."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sidecar.errors import ConfigError, StoreError
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.policy import Policy
from sidecar.fold.drift.window import Assembly
from sidecar.jobs import ray_pool
from sidecar.jobs.calibrating import calibrate_limits, calibrate_tail
from sidecar.jobs.fitting import fit_recordings, header_of, parts_of, survey_recordings
from sidecar.jobs.pool import Here, Pool
from sidecar.jobs.ray_pool import OnRay
from sidecar.store.recording import Recording
from tests.jobs.traffic import record

# Ray leaves sockets and processes to the collector, and uses what Python deprecates.
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[OnRay]:
    """Of two workers. Its start is tried twice: on a busy machine the first may be too slow."""
    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 128 << 20}
    try:
        pool = OnRay("local", **options)
    except Exception:
        ray_pool.ray.shutdown()
        pool = OnRay("local", **options)
    with pool:
        yield pool


def baseline_of(recordings: list[Recording], pool: Pool) -> Baseline:
    def ignore(_: int) -> None:
        pass

    plan = survey_recordings(recordings, pool, ignore)
    header = header_of(recordings, Assembly())
    baseline = fit_recordings(recordings, header, plan, pool, ignore).get()
    baseline = baseline.with_tail(calibrate_tail(baseline, recordings, pool, ignore))
    return baseline.calibrated(calibrate_limits(baseline, Policy(), 3, pool, ignore, 20))


def test_a_cluster_fits_and_calibrates_to_the_same_bit(
    cluster: OnRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every array, limit and figure: the digest is of all of them."""
    parts = parts_of.__defaults__
    monkeypatch.setattr(parts_of, "__defaults__", (1000,))
    # Six days of an hour each, so that there is a second half to draw days from.
    recordings = [
        each for day in range(6) for each in record(tmp_path, 1 / 24, first_day=day, seed=day)
    ]
    mine = baseline_of(recordings, Here())
    theirs = baseline_of(recordings[::-1], cluster)

    assert parts != parts_of.__defaults__
    assert mine.calibration is not None
    assert mine.calibration.replay["num_months"] == 20
    assert mine.digest == theirs.digest
    assert np.array_equal(mine.reservoir, theirs.reservoir, equal_nan=True)


def _refuse(number: int) -> int:
    if number == 3:
        raise StoreError("3.parquet: torn")
    return number


@pytest.mark.parametrize("run", [_refuse])
def test_a_worker_s_error_is_the_operator_s(cluster: OnRay, run: Callable[[int], int]) -> None:
    """The results before it come, then one line, without the worker's traceback."""
    results = cluster.map(run, range(5))

    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StoreError, match=r"^3\.parquet: torn$"):
        next(results)


def test_another_release_on_a_worker_is_refused(
    cluster: OnRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers may mean something else."""
    monkeypatch.setattr(ray_pool.sidecar, "__version__", "0.0.0.dev1")

    with pytest.raises(ConfigError, match=r"release .* and this process 0.0.0.dev1"):
        list(cluster.map(abs, [1]))
