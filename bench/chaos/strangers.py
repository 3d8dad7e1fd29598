"""Messages that are none of ours, at a steady rate on the same socket as good ones."""

import hmac
import itertools
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import zmq

from bench.chaos.alarms import Alarms, options
from bench.chaos.row import Row, Size
from bench.chaos.stand import Stand
from sidecar.wire.frame import MAX_BYTES, SCHEMA, Frame, Header, Source, pack
from sidecar.wire.synthetic import SyntheticEngine

PER_SECOND: Final = 1000
_OVERSIZED_EVERY: Final = 500


def malformed_frames(folder: Path, size: Size) -> Row:
    """Every way to be wrong, a thousand times a second, while ranks go on."""
    with Stand(folder, size.num_ranks, options(folder)) as stand:
        alarms = Alarms(stand)
        alarms.canary()
        alarms.overflow()
        stranger = _Stranger(stand.socket, stand.key)
        began = time.monotonic()
        stranger.speak(PER_SECOND, size.seconds)
        seconds = time.monotonic() - began
        stand.wait("all that is wrong is refused", lambda: _refused(stand) >= stranger.num_handed)
        alarms.check()
        refused = stand.ask("/v1/status")["frames_refused"]
        alarms.close()
        account = stand.account()
    return Row(
        f"{stranger.num_handed / seconds:,.0f} malformed messages a second for {size.seconds:g} s "
        f"beside {size.num_ranks} ranks",
        account,
        abs(sum(refused.values()) - stranger.num_handed),
        alarms.num_raised,
        alarms.num_lost,
        (),
        "nothing stopped; failed would be a malformed message that was not refused and counted, "
        "or a good one that was",
        {"malformed": {"handed_over": stranger.num_handed, "refused": refused}},
    )


class _Stranger:
    """A process' worth of nonsense, over a socket of its own."""

    def __init__(self, path: Path, key: bytes) -> None:
        self.num_handed = 0
        self._messages = _messages(key)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 5000)
        self._socket.connect(f"ipc://{path}")

    def speak(self, per_second: int, seconds: float) -> None:
        """Send, and wait where there is no room: each message must be refused, and counted."""
        began = time.monotonic()
        for number, message in enumerate(self._messages):
            late = began + number / per_second - time.monotonic()
            if time.monotonic() - began > seconds:
                break
            if late > 0:
                time.sleep(late)
            self._socket.send(message)
            self.num_handed += 1
        self._socket.close()
        threading.Thread(target=self._context.term, daemon=True).start()


def _messages(key: bytes) -> Iterator[bytes]:
    """Messages that no sidecar may use: of strangers, and of an engine of ours that went mad."""
    header = Header(secrets.token_hex(8), Source("engine", 901), 1, time.time_ns(), 0, 0)
    body = SyntheticEngine().step()
    good = pack(Frame(header, body), key)
    short = msgspec.structs.replace(body, layers=body.layers[1:])  # than its numbers
    prefix, payload = good[:4], good[36:]
    for number in itertools.count():
        torn = payload[: number % len(payload)]
        yield b""
        yield secrets.token_bytes(64)
        yield b"X" + good[1:]
        yield prefix[:3] + bytes([SCHEMA + 1]) + good[4:]
        yield prefix + secrets.token_bytes(32) + payload  # signed, by nobody we know
        yield prefix + hmac.digest(key, torn, "sha256") + torn
        yield prefix + hmac.digest(key, payload + b"\0", "sha256") + payload + b"\0"
        yield pack(Frame(header, short), key)
        if number % _OVERSIZED_EVERY == 0:
            yield good + bytes(MAX_BYTES)


def _refused(stand: Stand) -> int:
    return sum(stand.ask("/v1/status")["frames_refused"].values())
