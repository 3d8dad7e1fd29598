"""What every test starts from: an environment without a word about the sidecar."""

import os

import pytest
from hypothesis import settings

# A property either holds or does not; how long one example takes says what else the machine does.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Triton chooses its interpreter when its own functions are decorated, so before anyone imports it.
os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _no_sidecar_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SIDECAR_"):
            monkeypatch.delenv(name)
