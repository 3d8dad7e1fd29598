"""What every test starts from: an environment without a word about the sidecar."""

import os

import pytest
from hypothesis import settings

pytest_plugins = ["tests.afresh"]

# A property either holds or does not; how long one example takes says what else the machine does.
# Examples are the same in each run, so that what is handed in is what was tested: new ones are
# looked for with HYPOTHESIS=explore, and with `python -m bench.fuzz`.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS", "same"))

# Triton chooses its interpreter when its own functions are decorated, so before anyone imports it.
os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _no_sidecar_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SIDECAR_"):
            monkeypatch.delenv(name)
