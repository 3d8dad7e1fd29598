"""Lint the chart and pack it into an archive, with Helm's own engine: `python -m helm.pack FOLDER`.

Where there is the command `helm`, `helm lint helm && helm package helm` does the same.
"""

import sys
from pathlib import Path

from helm_python import lint, package

CHART = Path(__file__).parent
_WARNING = 2


def main(folder: Path) -> int:
    """Write the archive into `folder`; 1 and what Helm said when it finds fault."""
    report = lint(CHART, {"engine": {"model": "any"}}, strict=True)
    faults = [told["error"] for told in report["messages"] if told["severity"] >= _WARNING]
    for fault in [*report["errors"], *faults]:
        sys.stderr.write(f"chart: {fault}\n")
    if report["errors"] or faults:
        return 1
    sys.stdout.write(f"{package(CHART, destination=folder)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
