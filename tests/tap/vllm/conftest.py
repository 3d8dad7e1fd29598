"""The rooms that know vLLM import the installed one, once: it takes seconds."""

import warnings
from types import SimpleNamespace

import pytest

from tests.tap.inbox import Inbox


@pytest.fixture
def tap_on(monkeypatch: pytest.MonkeyPatch, inbox: Inbox, socket_path) -> Inbox:
    """An operator who has switched the tap on, and a sidecar that listens."""
    monkeypatch.setenv("SIDECAR_TAP", "1")
    monkeypatch.setenv("SIDECAR_SOCKET", str(socket_path))
    monkeypatch.setenv("SIDECAR_FLUSH_SECONDS", "0.05")
    monkeypatch.setenv("SIDECAR_MAX_ERRORS", "3")
    return inbox


@pytest.fixture(scope="session")
def installed_vllm() -> None:
    """Import what is patched of the installed vLLM; its own deprecations are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm.config
        import vllm.distributed
        import vllm.v1.metrics.loggers
        import vllm.v1.worker.worker_base  # noqa: F401


@pytest.fixture
def ranks(installed_vllm: None, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """This worker's place in its groups; a test may move it."""
    from vllm.distributed import parallel_state

    place = SimpleNamespace(tp=0, pp=0)
    for group in ("tp", "pp"):
        monkeypatch.setattr(
            parallel_state,
            f"get_{group}_group",
            lambda group=group: SimpleNamespace(rank_in_group=getattr(place, group)),
        )
    return place
