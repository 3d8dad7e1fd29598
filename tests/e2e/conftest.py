"""Servers shared by the end-to-end tests. Each starts on first use and serves all tests after."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler.loadscope import LoadScopeScheduling

from tests.e2e.checks import EVERYTHING
from tests.e2e.groups import LONGEST, group_of
from tests.e2e.harness import CANARY_SECRET, Stack, serving
from tests.e2e.observatory import Observatory, Strike, observing
from tests.e2e.prompts import Prompts

LAST = ("observatory", "tampered")  # fixtures whose tests come last, in this order


class Grouped(LoadScopeScheduling):
    """Hands the tests of a group to one worker, with `--dist loadgroup`."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Grouped | None:
    """Ours knows the groups by the names of their tests."""
    return Grouped(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests on the observatory last and alone, so that its traffic is beside no other's tests.

    After all of them come those that want its model tampered with: there is no way back. Of all
    others the groups that take longest come first.
    """
    for item in items:
        if _turn(item):
            item.add_marker("alone")
    items.sort(key=lambda item: (_turn(item), group_of(item.nodeid) not in LONGEST))


def _turn(item: pytest.Item) -> int:
    wanted = getattr(item, "fixturenames", ())
    return max((turn for turn, name in enumerate(LAST, 1) if name in wanted), default=0)


@pytest.fixture(scope="session")
def observatory(folder: Path) -> Iterator[Observatory]:
    """vLLM, sidecar, Prometheus, Alertmanager, pager and OTLP receiver, under traffic."""
    yield from observing(folder / "observatory")


@pytest.fixture(scope="session")
def tampered(observatory: Observatory) -> Strike:
    """The observatory's model tampered with, once its canary was armed; what was done to it."""
    observatory.wait_until_armed()
    return observatory.tamper()


@pytest.fixture(scope="session")
def prompts() -> Prompts:
    """Prompts cut from real text, as token ids."""
    return Prompts()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers of this session keep their logs and sockets."""
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def float32(folder: Path) -> Iterator[Stack]:
    """A compiled float32 server with the tap on, which knows a route and the operator's secret."""
    canary_key = folder / "canary.key"
    canary_key.write_bytes(CANARY_SECRET)
    environ = {"SIDECAR_ROUTES": "chat", "SIDECAR_CANARY_KEY_FILE": str(canary_key)}
    yield from serving(Stack(folder / "fp32", dtype="float32", environ=environ))


@pytest.fixture(scope="session")
def bfloat16(folder: Path) -> Iterator[Stack]:
    """A compiled bfloat16 server with the tap on, and all of it at every step."""
    yield from serving(Stack(folder / "bf16", environ=EVERYTHING))


@pytest.fixture(scope="session")
def untapped(folder: Path) -> Iterator[Stack]:
    """The same server with the package installed and the tap off."""
    yield from serving(Stack(folder / "off", tap=False))


@pytest.fixture
def launch(folder: Path) -> Iterator[Callable[..., Stack]]:
    """Start servers of one test's own; they end with it."""
    stacks: list[Stack] = []

    def start(name: str, **options: object) -> Stack:
        stack = Stack(folder / name, **options)  # type: ignore[arg-type]
        stacks.append(stack)
        return stack.start()

    yield start
    for stack in stacks:
        stack.stop()
