"""The images, built once for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.image.containers import Containers, Image

EXPORTER = "localhost/llm-internals-sidecar:test"


@pytest.fixture(scope="session")
def containers() -> Iterator[Containers]:
    """podman and buildah."""
    made = Containers()
    yield made
    made.release()


@pytest.fixture(scope="session")
def exporter(containers: Containers) -> Image:
    """What runs beside vLLM, built for real. Some 90 s where no layer of it is here yet."""
    with containers.alone():
        said = containers.build("exporter", EXPORTER)
    assert said.status == 0, said.out[-4000:] + said.err[-4000:]
    return Image(containers, EXPORTER)


@pytest.fixture(scope="session")
def base(exporter: Image) -> Image:
    """What the exporter was built upon."""
    return Image(exporter.containers, "localhost/llm-internals-base:debian")
