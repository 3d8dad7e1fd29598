"""A process that loads a socket, or reads it too slowly; the bench starts it beside the sidecar.

    python -m bench.capacity.load push SOCKET KILOBYTES NUM RANK       as fast as it is taken
    python -m bench.capacity.load pace SOCKET KILOBYTES NUM RANK RATE  by the tap's sender
    python -m bench.capacity.load mix SOCKET LAYERS,HEADS,EXPERTS NUM RANK
    python -m bench.capacity.load sip SOCKET SECONDS                   reads one frame in SECONDS

One line of JSON in the end: frames sent and dropped, and the seconds it took. Then it waits for its
stdin to end before it hangs up.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

import zmq

from bench.capacity.frames import Stream, body_of, traffic
from sidecar.wire.channel import Receiver, Sender
from sidecar.wire.frame import Body, Source
from sidecar.wire.synthetic import SyntheticEngine

_CONNECT_SECONDS: Final = 10.0


def main(words: list[str]) -> None:
    """Do what the first word says."""
    what, socket = words[0], Path(words[1])
    if what == "sip":
        _sip(socket, float(words[2]))
    num, source = int(words[3]), Source("engine", tp=int(words[4]))
    if what == "pace":
        _pace(Sender(socket, source), int(words[2]), num, float(words[5]))
    elif what == "mix":
        layers, heads, experts = (int(each) for each in words[2].split(","))
        engine = SyntheticEngine(layers, num_heads=heads, num_experts=experts)
        _push(socket, source, _mixed(engine, num))
    else:
        _push(socket, source, _same(int(words[2]), num))


def _same(kilobytes: int, num: int) -> Iterator[Body]:
    body = body_of(kilobytes)
    yield from (body for _ in range(num))


def _mixed(engine: SyntheticEngine, num: int) -> Iterator[Body]:
    left = num
    while left > 0:
        for body in traffic(engine, time.time_ns()):
            if not left:
                return
            left -= 1
            yield body


def _push(socket: Path, source: Source, bodies: Iterator[Body]) -> None:
    """Wait whenever the sidecar is behind: what is measured is its pace."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.connect(f"ipc://{socket}")
    stream = Stream(source)
    started = time.monotonic()
    for body in bodies:
        push.send(stream.message(body, time.time_ns()))
    _say(stream.num_frames, 0, time.monotonic() - started)
    push.close(linger=60_000)
    context.term()


def _pace(sender: Sender, kilobytes: int, num: int, rate: float) -> None:
    sender.open()
    body = body_of(kilobytes)
    until = time.monotonic() + _CONNECT_SECONDS
    while not sender.send(body) and time.monotonic() < until:
        time.sleep(0.1)
    first, dropped = sender.num_sent - 1, sender.num_dropped  # one was taken
    started = time.monotonic()
    for number in range(num):
        ahead = started + number / rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        sender.send(body)
    seconds = time.monotonic() - started
    _say(sender.num_sent - first, sender.num_dropped - dropped, seconds)
    sender.close(linger_seconds=10.0)


def _sip(socket: Path, seconds: float) -> NoReturn:
    receiver = Receiver(socket)
    print("ready", flush=True)
    while True:
        receiver.receive(seconds)
        time.sleep(seconds)


def _say(num_sent: int, num_dropped: int, seconds: float) -> None:
    told = {"sent": num_sent, "dropped": num_dropped, "seconds": seconds}
    print(json.dumps(told), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
