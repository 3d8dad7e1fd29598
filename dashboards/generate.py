"""`python -m dashboards.generate [FOLDER]`: writes each dashboard's JSON.

Guarantee: the same code gives the same bytes, so that what is committed can be checked.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from dashboards import shell
from dashboards.boards import drift, health, internals, overview, serving
from dashboards.sdk import JSONEncoder

FOLDER: Final = Path(__file__).parent / "json"
_PLACEMENT: Final = ("placement", "inControlsMenu")
BOARDS: Final = (overview.BOARD, internals.BOARD, drift.BOARD, serving.BOARD, health.BOARD)


def files() -> dict[str, str]:
    """What is to be written, by name of the file."""
    return {f"{board.name}.json": _text(board) for board in BOARDS}


def main(arguments: list[str]) -> int:
    """Write all files into the folder that was named; 0, the exit status."""
    folder = Path(arguments[0]) if arguments else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text)
    return 0


def _text(board: shell.Board) -> str:
    plain = json.loads(json.dumps(shell.build(board), cls=JSONEncoder))
    return json.dumps(without_placement(plain), indent=2, sort_keys=True) + "\n"


def without_placement(plain: Any) -> Any:
    """What the SDK made, without the one placement of links that it knows: hidden behind a menu."""
    if isinstance(plain, dict):
        kept = ((key, each) for key, each in plain.items() if (key, each) != _PLACEMENT)
        return {key: without_placement(each) for key, each in kept}
    return [without_placement(each) for each in plain] if isinstance(plain, list) else plain


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
