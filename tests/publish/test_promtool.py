"""`promtool check metrics` finds nothing to say about the exposition."""

import shutil
import subprocess

from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.metrics.selection import Selection
from tests import fakes
from tests.fakes import NOW, SECOND
from tests.publish import drifting


def test_promtool_has_no_complaint() -> None:
    """Names, units, help texts and types pass its linter."""
    promtool = shutil.which("promtool")
    assert promtool, (
        "promtool is not on PATH; `make tools` installs it (Debian: apt install prometheus)"
    )
    snapshot = fakes.everything().get(NOW + 10 * SECOND)
    exposition = Exposition(10_000, Selection.everything(), collectors=drifting.collectors())
    body = exposition.render(snapshot)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=body, capture_output=True, timeout=30, check=False
    )

    assert (done.returncode, done.stderr.decode()) == (0, "")
