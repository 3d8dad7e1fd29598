"""One rank of the run: `python -m bench.soak.rank BOARD SOCKET RANK`.

Its log, one JSON object a source on stdout when all is over, is what the sidecar's account is
compared with: frames that it numbered, and those of them that found no room, by its own count.
"""

import json
import sys
import time
from pathlib import Path
from typing import Final

from bench.soak.board import Board
from bench.soak.engine import SCAN_EVERY, Engine
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Body, Source

_POLL_SECONDS: Final = 0.002
_CONNECT_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.02  # after a frame that found no room
_LAST_SECONDS: Final = 120.0


class Rank:
    """An engine and its sender; rank 0 has the front end beside it."""

    def __init__(self, board: Board, socket: Path, rank: int) -> None:
        self._board, self._rank = board, rank
        self._engine = Engine(rank)
        self._front: Body = self._engine.serving(0, board.now_ns())
        self._tap = Sender(socket, Source("engine", tp=rank), clock_ns=board.now_ns)
        self._senders = [self._tap]
        if rank == 0:
            self._senders.append(Sender(socket, Source("frontend"), clock_ns=board.now_ns))

    def run(self) -> list[dict[str, object]]:
        """Tell every second until none follows; the log of each sender."""
        for sender in self._senders:
            sender.open()
        time.sleep(_CONNECT_SECONDS)
        second = 0
        while not self._board.is_over:
            if second == self._board.second:
                time.sleep(_POLL_SECONDS)
                continue
            second += 1
            self._say(second)
            sent = sum(each.num_sent for each in self._senders)
            dropped = sum(each.num_dropped for each in self._senders)
            self._board.tell(self._rank, second, sent, dropped)
        for sender in self._senders:
            self._take_leave(sender)
        return [_log(each) for each in self._senders]

    def _say(self, second: int) -> None:
        now_ns = self._board.now_ns()
        for body in self._engine.bodies(second, now_ns):
            _send(self._tap, body)
        if self._rank == 0:
            self._front = self._engine.serving(second, now_ns)
            _send(self._senders[1], self._front)
            if second % SCAN_EVERY == 0:
                _send(self._tap, self._engine.scan(second))

    def _take_leave(self, sender: Sender) -> None:
        """End with a frame that arrives: only what comes after a lost frame can tell of it."""
        until = time.monotonic() + _LAST_SECONDS
        is_tap = sender is self._tap
        last: Body = self._engine.status() if is_tap else self._front
        while not _send(sender, last) and time.monotonic() < until:
            pass
        sender.close(linger_seconds=_LAST_SECONDS)


def _send(sender: Sender, body: Body) -> bool:
    is_sent = sender.send(body)
    if not is_sent:
        time.sleep(_PAUSE_SECONDS)
    return is_sent


def _log(sender: Sender) -> dict[str, object]:
    return {
        "source": sender.source.name,
        "sent": sender.num_sent,
        "dropped": sender.num_dropped,
    }


if __name__ == "__main__":
    print(json.dumps(Rank(Board(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])).run()))
