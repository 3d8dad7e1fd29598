"""Costs that CI watches, each over a known piece of work of the same run: ratios, never times.

    python -m bench.watched [--json PATH]     # keep the ratios that CI then compares with

A ratio of two costs on one machine, taken in turns, stays what it is on a faster or a busier one. A
cost has grown when its ratio is `TOLERANCE` times what was kept, in each of three attempts.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import msgspec
from prometheus_client.exposition import generate_latest

from bench import report
from bench.capacity.frames import Stream, body_of
from bench.capacity.growth import NOW, Prepare, accepting, again, best, scrape
from bench.report import RESULTS, Section
from bench.scrape import told_again
from sidecar.publish.metrics.selection import Selection
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Frame, Header, Source, pack
from sidecar.wire.synthetic import SyntheticEngine

KEPT: Final = RESULTS / "ratios.json"
TOLERANCE: Final = 2.0
_ATTEMPTS: Final = 3
_TURNS: Final = 9
_HEAD_BYTES: Final = 36  # of a message: magic, schema and signature


class Pair(NamedTuple):
    """A cost of ours, and the known work that it is told in."""

    ours: Prepare
    known: Prepare
    repeats: int


def main() -> None:
    """Print the ratios; keep them when asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="keep them here")
    options = parser.parse_args()
    started = time.monotonic()
    found = measured()
    section = table(found)
    print("\n".join(report.table(section)))
    if options.json:
        command = f"python -m bench.watched --json {options.json}"
        run = report.Run("ratios", command, time.monotonic() - started)
        report.write(options.json, run, section, ("numpy", "msgspec", "prometheus-client"))


def table(found: Mapping[str, float]) -> Section:
    """The ratios as a section."""
    rows = [[*name.split(" / ", 1), f"{ratio:.2f}"] for name, ratio in found.items()]
    note = f"CI fails where a ratio is {TOLERANCE:g} times the one here, three times in a row."
    columns = ("cost", "in units of", "ratio")
    return Section("Costs that CI watches", columns, rows, {"ratios": dict(found)}, [note])


def measured(only: Iterable[str] = ()) -> dict[str, float]:
    """Ratios by name, CPU of one thread; only: the ones to take."""
    with TemporaryDirectory(prefix="watched-") as folder:
        sender = Sender(Path(folder) / "nobody.sock", Source("engine"))
        try:
            names = list(only) or list(PAIRS)
            return {name: ratio_of(PAIRS[name](sender)) for name in names}
        finally:
            sender.close()


def ratio_of(pair: Pair) -> float:
    """The least cost of ours over the least of the known work, turns of both interleaved."""
    ours, known = [], []
    for _ in range(_TURNS):
        ours.append(best(pair.ours, pair.repeats, 1))
        known.append(best(pair.known, pair.repeats, 1))
    return min(ours) / min(known)


def grown(
    kept: Mapping[str, float],
    measure: Callable[[Iterable[str]], Mapping[str, float]] = measured,
) -> list[str]:
    """What costs more than it did, in words; each is asked about again before it is told."""
    suspects, found = list(kept), dict[str, float]()
    for _ in range(_ATTEMPTS):
        if suspects:
            found |= measure(suspects)
        suspects = [name for name in suspects if found[name] > TOLERANCE * kept[name]]
    return [f"{name}: {found[name]:.2f}, was {kept[name]:.2f}" for name in suspects]


def kept_ratios(path: Path = KEPT) -> dict[str, float]:
    """The ratios that were kept."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    ratios: dict[str, float] = result["figures"]["ratios"]
    return ratios


def _taking_in(_: Sender) -> Pair:
    return Pair(accepting(body_of(20)), again(_decoding()), 100)


def _signed(_: Sender) -> Pair:
    engine = SyntheticEngine(48)
    engine.requests(4, NOW)
    return Pair(accepting(engine.signatures(4, NOW)), again(_decoding()), 50)


def _sending(sender: Sender) -> Pair:
    body = body_of(20)
    frame = Frame(Header("boot-one", Source("engine"), 1, NOW, 0, 0), body)
    return Pair(again(lambda: sender.send(body)), again(lambda: pack(frame)), 100)


def _scraping(_: Sender) -> Pair:
    render = scrape(SyntheticEngine(32, num_heads=32), 1, Selection.everything())
    registry = told_again(render())
    return Pair(again(render), again(lambda: generate_latest(registry)), 1)


# By name: the cost / the known work that it is told in.
PAIRS: Final[dict[str, Callable[[Sender], Pair]]] = {
    "taking in 20 KB / decoding it": _taking_in,
    "taking in signatures / decoding 20 KB": _signed,
    "a send to nobody / packing it": _sending,
    "a scrape of 7,000 series / the stock client": _scraping,
}


def _decoding() -> Callable[[], object]:
    decoder = msgspec.msgpack.Decoder(Frame)
    payload = Stream(Source("engine")).message(body_of(20), NOW)[_HEAD_BYTES:]
    return lambda: decoder.decode(payload)


if __name__ == "__main__":
    main()
