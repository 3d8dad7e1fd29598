"""The images, built once for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.image.containers import Image
from tests.image.machine import Machine


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """podman and buildah."""
    made = Machine()
    yield made
    made.release()


@pytest.fixture(scope="session")
def exporter(machine: Machine) -> Image:
    """What runs beside vLLM, built for real. Some 90 s where no layer of it is here yet."""
    return Image(machine, machine.build("exporter"))


@pytest.fixture(scope="session")
def base(exporter: Image) -> Image:
    """What the exporter was built upon."""
    return Image(exporter.machine, "localhost/llm-internals-base:debian")
