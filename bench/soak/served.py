"""`sidecar serve` by the clock of a run: `python -m bench.soak.served BOARD OPTION...`."""

import argparse
import sys
from pathlib import Path

from bench.soak.board import Board
from sidecar.commands import serve as command
from sidecar.publish.server import serve

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    command.add(parser)
    config = command.exporter_config(parser.parse_args(sys.argv[2:]), {})
    board = Board(Path(sys.argv[1]))
    sys.exit(serve(config, board.now_ns, board.now_ns))
