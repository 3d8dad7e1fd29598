"""What installs the tap into a vLLM image notices whatever moved and whatever lacks."""

import importlib.util
from types import ModuleType

import pytest

from tests.deploy.chart import ROOT


@pytest.fixture(scope="module")
def add_tap() -> ModuleType:
    """The script, loaded."""
    spec = importlib.util.spec_from_file_location("add_tap", ROOT / "scripts" / "add_tap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_moved_is_told(add_tap: ModuleType) -> None:
    """Other versions, packages that came, packages that went; our own is no news."""
    before = {"numpy": "2.2", "torch": "2.8", "zmq": "1"}
    after = {"numpy": "2.3", "torch": "2.8", "rich": "1", "llm-internals-sidecar": "0.1.0"}

    told = list(add_tap.moved(before, after))
    assert told == [
        "numpy was 2.2 and is 2.3",
        "rich was absent and is 1",
        "zmq was 1 and is absent",
    ]
    assert list(add_tap.moved(before, {**before, "llm-internals-sidecar": "0.1.0"})) == []


def test_what_lacks_is_told(add_tap: ModuleType) -> None:
    """A dependency that is not there, or too old; what only extras ask for is not missed."""
    has = {"numpy": "1.20", "msgspec": "0.22.0", "pydantic": "2.14.3"}

    told = list(add_tap.lacking(has))
    assert told == [
        "the tap needs numpy>=1.26, here is 1.20",
        "the tap needs pyzmq>=25, here is none",
    ]
    assert list(add_tap.lacking(add_tap.packages())) == []
