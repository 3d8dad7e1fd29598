"""How soon `sidecar serve` ends under load when told to, and what of the last minutes is kept.

    python -m bench.ending     # ten ends, into bench/results/ending.json and docs/reliability.md

Everything that could hold it back is there at once: ranks that go on sending, clients of
/v1/events that read and others that do not, scrapes without a pause, half a request, and three
servers that take a connection and never say a word: an OTLP receiver with spans waiting for it, the
model that canaries are sent to, and the one that has the baseline. The real process; every second
end is told twice.
"""

import argparse
import contextlib
import http.client
import json
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from bench import reliability
from bench.chaos.stand import Stand, request
from bench.report import Section
from sidecar.store.snapshot import SnapshotFile

PROMISED_SECONDS: Final = 5.0
NOTE: Final = "announced just before the end"
_PAUSE_SECONDS: Final = 0.05  # between two signals


class Load(NamedTuple):
    """How many of each are there when the end comes.

    requests: finished ones that the sidecar has used by then, at least.
    """

    ranks: int = 8
    listeners: int = 20
    sleepers: int = 20
    scrapers: int = 4
    requests: int = 200


class Ended(NamedTuple):
    """One end.

    seconds: from the first signal to the end of the process. status: its exit status.
    told: requests that the API said were used, just before the first signal. kept: those in the
    windows of the state folder afterwards. has_closed: whether a window closed by itself meanwhile,
    whose requests are therefore not among the kept ones. notes: of deployments, as the next life
    knows them. is_socket_left: whether the file of the socket is.
    """

    seconds: float
    status: int
    told: int
    kept: int
    has_closed: bool
    notes: tuple[str, ...]
    is_socket_left: bool

    @property
    def is_good(self) -> bool:
        """All but the time: nothing lost, nothing left, no error."""
        is_well = self.status == 0 and not self.is_socket_left
        return is_well and self.kept >= self.told and NOTE in self.notes


def end_within_a_window(folder: Path, load: Load, num_signals: int = 1) -> Ended:
    """`end`, and once more where an hour was over meanwhile: what was closed cannot be counted."""
    ended = end(folder / "once", load, num_signals)
    return end(folder / "again", load, num_signals) if ended.has_closed else ended


def end(folder: Path, load: Load, num_signals: int = 1) -> Ended:
    """Serve under `load` in `folder`, end it by so many signals, and look at what is left."""
    with contextlib.ExitStack() as held:
        options = [*_silent(held, folder), "--state-dir", str(folder / "state")]
        stand = held.enter_context(Stand(folder, load.ranks, options))
        clients = held.enter_context(_clients(stand, load))
        stand.wait("spans wait", lambda: _waiting_spans(stand) > 0)
        stand.wait("requests are used", lambda: _used(stand) >= load.requests)
        stand.ask("/v1/deployments", {"note": NOTE})
        told = _used(stand)
        seconds, status = stand.end_sidecar(num_signals, _PAUSE_SECONDS)
        clients.set()
        kept, has_closed = _kept(folder / "state")
        is_socket_left = stand.socket.exists()
        stand.start_sidecar()
        notes = tuple(each["note"] for each in stand.ask("/v1/drift")["deployments"])
    return Ended(seconds, status, told, kept, has_closed, notes, is_socket_left)


def section(ends: list[Ended], load: Load) -> Section:
    """The table of all ends."""
    seconds = sorted(each.seconds for each in ends)
    row = (
        str(len(ends)),
        f"{seconds[len(seconds) // 2]:.2f} s",
        f"{seconds[-1]:.2f} s",
        str(sum(each.told for each in ends)),
        str(sum(max(0, each.told - each.kept) for each in ends)),
        str(sum(not each.is_good for each in ends)),
    )
    columns = (
        "ends",
        "p50",
        "longest",
        "requests in open windows",
        "of these lost",
        "ends with anything lost, left or failed",
    )
    note = (
        f"{load.ranks} ranks, {load.listeners} clients of /v1/events that read and "
        f"{load.sleepers} that do not, {load.scrapers} scrapers without a pause, half a request, "
        "an OTLP receiver, a model and a baseline's server that take a connection and never "
        "answer. Every second end was told by two signals. Promised are five seconds."
    )
    figures: dict[str, Any] = {"load": load._asdict(), "ends": [each._asdict() for each in ends]}
    return Section("Told to end under load", columns, [row], figures, (note,))


def _silent(held: contextlib.ExitStack, folder: Path) -> list[str]:
    """Options that name three servers which never answer."""
    folder.mkdir(parents=True, exist_ok=True)
    otlp, model, shelf = (
        held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64)) for _ in range(3)
    )
    url = "http://127.0.0.1:{}".format
    source, key = folder / "source.json", folder / "canary.key"
    wanted = {"url": f"{url(shelf.getsockname()[1])}/chat", "sha256": "0" * 64}
    source.write_text(json.dumps(wanted))
    key.write_text(secrets.token_hex(16))
    told = ["--otlp-endpoint", url(otlp.getsockname()[1]), "--otlp-protocol", "http/protobuf"]
    told += ["--otlp-metrics-seconds", "0.5"]
    told += ["--canary-url", url(model.getsockname()[1]), "--canary-key-file", str(key)]
    told += ["--baseline-source-file", str(source)]
    return [*told, "--baseline-file", str(folder / "fetched.baseline"), "--window-seconds", "3600"]


@contextlib.contextmanager
def _clients(stand: Stand, load: Load) -> Iterator[threading.Event]:
    """All clients, until the event is set."""
    over = threading.Event()
    sockets = [_asking(stand.api_url, b"/v1/events") for _ in range(load.listeners + load.sleepers)]
    half = _connected(stand.api_url)
    half.sendall(b"GET /v1/status HT")
    threads = [threading.Thread(target=_listen, args=[each]) for each in sockets[: load.listeners]]
    threads += [
        threading.Thread(target=_scrape, args=[stand.metrics_url, over])
        for _ in range(load.scrapers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield over
    finally:
        over.set()
        for each in (*sockets, half):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in threads:
            thread.join()


def _connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60.0)


def _asking(url: str, path: bytes) -> socket.socket:
    made = _connected(url)
    made.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    return made


def _listen(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(1 << 16):
            pass


def _scrape(url: str, over: threading.Event) -> None:
    while not over.is_set():
        with contextlib.suppress(OSError, http.client.HTTPException):
            request(f"{url}/metrics")
        over.wait(0.01)


def _waiting_spans(stand: Stand) -> float:
    return stand.scrape().get("llm_internals_span_queue_size", 0.0)


def _used(stand: Stand) -> int:
    return int(stand.ask("/v1/drift")["requests"]["used"])


def _kept(folder: Path) -> tuple[int, bool]:
    """Requests in the open windows of a state folder, and whether a window had closed before."""
    snapshot = SnapshotFile(folder / "drift.snapshot").read()
    book = snapshot.channels["judges"].state["book"] if snapshot else {"open": [], "cursor": 0}
    opened = [each["windows"] for each in book["open"]]
    windows = [cell for each in opened for cell in (*each["cells"], each["partial"]) if cell]
    return sum(each["num_requests"] for each in windows), bool(book["cursor"])


def main() -> int:
    """End it again and again, and keep the figures; 1 when a promise broke."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ends", type=int, default=10)
    given = parser.parse_args()
    began, load, ends = time.monotonic(), Load(), []
    for number in range(given.ends):
        with tempfile.TemporaryDirectory() as folder:
            ends.append(end_within_a_window(Path(folder), load, 1 + number % 2))
            print(ends[-1], flush=True)
    command = "python -m bench.ending" + (f" --ends {given.ends}" if given.ends != 10 else "")
    reliability.write("ending", section(ends, load), command, time.monotonic() - began)
    reliability.main()
    return int(not all(each.is_good and each.seconds <= PROMISED_SECONDS for each in ends))


if __name__ == "__main__":
    sys.exit(main())
