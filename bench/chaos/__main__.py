"""Every row at full size, some 20 minutes; the table stands in docs/reliability.md.

python -m bench.chaos [--rows sidecar_killed,crowd] [--small]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench import reliability
from bench.chaos.row import Row, Size, section
from bench.chaos.rows import ROWS, SMALL
from bench.report import table


def main() -> int:
    """Print the table; keep it when all rows were taken at full size. 1 when a promise broke."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--small", action="store_true", help="as CI does")
    given = parser.parse_args()
    began, rows = time.monotonic(), list[Row]()
    for name in given.rows.split(","):
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            rows.append(ROWS[name](Path(folder), SMALL if given.small else Size()))
        print(f"{name}: {rows[-1]}", file=sys.stderr, flush=True)
    made = section(rows)
    print("\n".join(table(made)))
    if not given.small and len(rows) == len(ROWS):
        reliability.write("chaos", made, "python -m bench.chaos", time.monotonic() - began)
        reliability.main()
    return 0 if all(row.is_as_promised for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
