"""What the rooms of the tap share under test: a real receiver, and no thread left behind."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sidecar.tap.guard import Guard
from sidecar.tap.pump import Pump
from tests.tap.inbox import Inbox


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_pump_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A refusal's pump has no owner that could stop it: in an engine it runs for ever."""
    started: list[Pump] = []
    start = Pump.start

    def remembered(pump: Pump) -> None:
        started.append(pump)
        start(pump)

    monkeypatch.setattr(Pump, "start", remembered)
    yield
    for pump in started:
        pump.stop()


@pytest.fixture
def guard() -> Guard:
    """A guard that disarms a site at its third exception."""
    return Guard(max_errors=3)


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Where the two sides meet; short, as the path of a unix socket must be."""
    with tempfile.TemporaryDirectory(prefix="tap-") as folder:
        yield Path(folder) / "ingest.sock"


@pytest.fixture
def inbox(socket_path: Path) -> Iterator[Inbox]:
    """A receiver that listens at `socket_path`."""
    made = Inbox(socket_path)
    yield made
    made.close()
