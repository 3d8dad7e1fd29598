"""Servers shared by the end-to-end tests. Each starts on first use and serves all tests after."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.checks import EVERYTHING
from tests.e2e.harness import CANARY_SECRET, Stack, serving
from tests.e2e.observatory import Observatory, Strike, observing
from tests.e2e.prompts import Prompts

LAST = ("observatory", "tampered")  # fixtures whose tests come last, in this order
# Tests that share a server are run by one worker; those of `untapped` compare it with `bfloat16`.
SHARED = {"float32": "float32", "bfloat16": "bfloat16", "untapped": "bfloat16"}
OWN = ("served", "tensor", "pipeline", "data")  # fixtures with a server for each, or each parameter
FIRST = ("float32", "bfloat16", "image")  # groups that take longest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests may run beside others, and which of them together.

    Tests on the observatory come last and alone (marked so), so that its traffic is beside no other
    server's tests. After all of them come those that want its model tampered with: there is no way
    back. All others have a group (`--dist loadgroup`), and the longest groups come first.
    """
    for item in items:
        if _turn(item):
            item.add_marker("alone")
        item.add_marker(pytest.mark.xdist_group(re.sub(r"[^\w.-]", "-", _group(item))))
    items.sort(key=lambda item: (_turn(item), _group(item) not in FIRST))


def _turn(item: pytest.Item) -> int:
    wanted = getattr(item, "fixturenames", ())
    return max((turn for turn, name in enumerate(LAST, 1) if name in wanted), default=0)


def _group(item: pytest.Item) -> str:
    """The server that a test shares; the test itself when it starts its own; or else its file."""
    wanted = getattr(item, "fixturenames", ())
    if _turn(item):
        return LAST[0]
    if shared := next((group for name, group in SHARED.items() if name in wanted), None):
        return shared
    file = item.path.stem
    if item.path.parent.name == "image" or file == "test_pod":
        return "image"  # built once, in one store
    if "launch" in wanted:
        return f"{file}-{item.name}"
    if own := next((name for name in OWN if name in wanted), None):
        given = getattr(item, "callspec", None)
        return f"{file}-{own}-{given.params.get(own, '') if given else ''}"
    return file


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
