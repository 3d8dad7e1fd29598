"""The fleet job: finds the exporters, pulls their closed windows, and contrasts the replicas.

Every round: Prometheus is asked which exporters there are, each of them for the windows that it
closed since, and what came is folded in order of time.

Guarantees:
- Nothing that Prometheus or an exporter does ends the job: each failure is counted by its cause,
  and told as a sentence with the remedy. Where Prometheus fails, the exporters known go on.
- One exporter that is slow or lies costs the others nothing: each has its own limit of time and
  size, `MAX_AT_ONCE` are asked at a time, and what is wrong in its answer is left out whole.
- Exporters are compared with those whose layout and baseline most of them have; the rest are
  counted as foreign.
- A restart goes on where it stopped, once the state was kept; a state that is torn or of something
  else is refused, and said so.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import httpx

from sidecar.config import FleetConfig
from sidecar.errors import FleetError, StateError, StoreError
from sidecar.fold.drift.contrast import MIN_REPLICAS, ContrastChannel, Counts, Replica
from sidecar.fold.drift.verdict import ChannelState, Verdict
from sidecar.fold.drift.window import LONGEST_NS
from sidecar.publish.fleet.directory import Exporter, Places, find
from sidecar.publish.fleet.fetching import new_client
from sidecar.publish.fleet.pulling import Kind, Pulled, Terms, Told, pull
from sidecar.store.snapshot import Saved, Snapshot, SnapshotFile

MAX_AT_ONCE: Final = 16
FILE_NAME: Final = "fleet.snapshot"
_STOP_SECONDS: Final = 2.0
_STALE: Final = 3  # windows beyond the longest one, and a verdict is called old
_NAME: Final = ContrastChannel.name
_log = logging.getLogger(__name__)


class ExporterView(NamedTuple):
    """One exporter, as of the last round.

    reason: why its last answer was not used; "" when it was.
    latest_ns: end of the latest window that it told; 0 before any.
    """

    name: str
    url: str
    reason: str
    latest_ns: int


class FleetView(NamedTuple):
    """Everything publishable about a fleet.

    trouble: why Prometheus' last answer was not used; "" when it was.
    refused: answers and windows that were not used, by cause.
    association: Cramer's V of routing, see `fold.drift.affinity`.
    keeping: why the state would not survive a restart; "" when it would.
    num_errors: exceptions of ours that were swallowed.
    """

    now_ns: int
    verdict: Verdict
    replicas: tuple[Replica, ...] = ()
    exporters: tuple[ExporterView, ...] = ()
    trouble: str = ""
    refused: Mapping[str, int] = Counter()
    counts: Counts = Counts()
    num_pages: int = 0
    association: float = 0.0
    keeping: str = ""
    num_errors: int = 0


_Answer = Pulled | FleetError


class _Round(NamedTuple):
    """What one round of asking brought."""

    exporters: tuple[Exporter, ...]
    trouble: FleetError | None
    answers: dict[str, _Answer]


class Fleet:
    """Owns the channel and the only thread that feeds it.

    file: where its state is kept; None keeps it in memory alone.
    clock_ns: Unix time in nanoseconds, the same that the exporters have.
    """

    def __init__(
        self,
        config: FleetConfig,
        file: SnapshotFile | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._config = config
        self._token = config.fleet_api_token()
        self._clock_ns = clock_ns
        self._memory = _Memory(file)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sidecar-fleet", daemon=True)
        self._channel: ContrastChannel | None = None
        self._kind: Kind | None = None
        self._kinds: dict[str, Kind] = {}  # of the latest window of each exporter
        self._exporters: tuple[Exporter, ...] = ()
        self._cursors: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._trouble = ""
        self._refused: Counter[str] = Counter()
        self._num_errors = 0
        self._view = FleetView(clock_ns(), _collecting("the exporters were not asked yet"))

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was judged is kept already, and a round under way is given up."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def get(self) -> FleetView:
        """Everything publishable, as of the last round."""
        return self._view

    def acknowledge(self) -> FleetView:
        """Somebody has seen the page: the latch opens, and the evidence starts again."""
        with self._lock:
            if self._channel is not None:
                self._channel.acknowledge(self._clock_ns())
                self._save()
            self._publish()
        return self._view

    async def turn(self, client: httpx.AsyncClient) -> None:
        """One round: ask, fold, keep, publish."""
        asked = await self._ask(client)
        with self._lock:
            self._fold(asked)
            self._save()
            self._publish()

    def _run(self) -> None:
        # A loop for life: one for each round would wait at its end for names that do not resolve.
        loop = asyncio.new_event_loop()
        client = new_client()
        while not self._stopping.is_set():
            try:
                loop.run_until_complete(self.turn(client))
            except Exception:  # a bug of ours must not end the thread
                self._num_errors += 1
                _log.exception("fleet: a round failed; the next one is tried")
            self._stopping.wait(self._config.fleet_poll_seconds)
        loop.run_until_complete(client.aclose())
        loop.close()

    async def _ask(self, client: httpx.AsyncClient) -> _Round:
        config = self._config
        places = Places(
            config.fleet_prometheus,
            config.fleet_query,
            config.fleet_replica_label,
            config.fleet_api_label,
            config.fleet_api_port,
        )
        exporters, trouble = self._exporters, None
        try:
            exporters = await find(client, places, config.fleet_timeout_seconds)
        except FleetError as error:
            trouble = error
        room = asyncio.Semaphore(MAX_AT_ONCE)
        answers = await asyncio.gather(*(self._pull(client, each, room) for each in exporters))
        names = (each.name for each in exporters)
        return _Round(exporters, trouble, dict(zip(names, answers, strict=True)))

    async def _pull(
        self, client: httpx.AsyncClient, exporter: Exporter, room: asyncio.Semaphore
    ) -> _Answer:
        terms = Terms(self._config.window_ns, self._clock_ns())
        after = self._cursors.get(exporter.name, 0)
        seconds = self._config.fleet_timeout_seconds
        async with room:
            try:
                return await pull(client, exporter, after, terms, seconds, self._token)
            except FleetError as error:
                return error

    def _fold(self, asked: _Round) -> None:
        self._trouble = "" if asked.trouble is None else str(asked.trouble)
        if asked.trouble is not None:
            self._refused[asked.trouble.cause] += 1
        self._exporters = asked.exporters
        self._forget({each.name for each in asked.exporters})
        told: list[tuple[str, Told]] = []
        for name, answer in asked.answers.items():
            self._reasons[name] = str(answer) if isinstance(answer, FleetError) else ""
            if isinstance(answer, FleetError):
                self._refused[answer.cause] += 1
            else:
                self._cursors[name] = answer.cursor
                told += [(name, each) for each in answer.windows]
        for name, each in told:
            self._kinds[name] = each.kind
        self._choose()
        self._contrast(told)

    def _forget(self, present: set[str]) -> None:
        for held in (self._cursors, self._reasons, self._kinds):
            for name in held.keys() - present:
                del held[name]

    def _choose(self) -> None:
        """Compare what most exporters have; a new kind starts at 0."""
        votes = Counter(kind.key for kind in self._kinds.values())
        if not votes:
            return
        current = "" if self._kind is None else self._kind.key
        chosen = max(votes, key=lambda key: (votes[key], key == current, key))
        if chosen != current:
            self._kind = next(kind for kind in self._kinds.values() if kind.key == chosen)
            self._channel = ContrastChannel(
                self._kind.schema,
                length_ns=self._config.window_ns,
                is_demo=self._config.is_demo,
            )
            self._memory.restore(self._channel, chosen)

    def _contrast(self, told: list[tuple[str, Told]]) -> None:
        if self._channel is None or self._kind is None:
            return
        key = self._kind.key
        alike = [e.name for e in self._exporters if self._kinds.get(e.name, self._kind).key == key]
        self._channel.expect(alike)
        # In order of time: of one replica alone a day of windows would be more than is held open.
        for name, each in sorted(told, key=lambda one: (one[1].window.end_ns, one[0])):
            if each.kind.key != key:
                self._refused["foreign"] += 1
                self._reasons[name] = (
                    "its layout of signatures or its baseline is another than that of most "
                    "exporters: give all the same tap settings and baseline"
                )
            elif each.window.end_ns > self._channel.latest_ns(name):
                self._channel.update(name, each.window)

    def _publish(self) -> None:
        now_ns, channel = self._clock_ns(), self._channel
        told = tuple(
            ExporterView(
                each.name,
                each.url,
                self._reasons.get(each.name, ""),
                channel.latest_ns(each.name) if channel is not None else 0,
            )
            for each in self._exporters
        )
        view = FleetView(
            now_ns,
            self._verdict(now_ns),
            exporters=told,
            trouble=self._trouble,
            refused=dict(self._refused),
            keeping=self._memory.reason,
            num_errors=self._num_errors,
        )
        if channel is not None:
            view = view._replace(
                replicas=channel.replicas(),
                counts=channel.counts,
                num_pages=channel.num_pages,
                association=channel.association,
            )
        self._view = view

    def _verdict(self, now_ns: int) -> Verdict:
        failing = [f"{name}: {reason}" for name, reason in self._reasons.items() if reason]
        said = "; ".join(filter(None, (self._trouble, *failing[:1])))
        if self._channel is None:
            return _collecting(said or "no exporter has closed a window yet: wait for one")
        verdict = self._channel.get(now_ns)
        limit_ns = LONGEST_NS + _STALE * self._config.window_ns
        if len(self._exporters) - len(failing) < MIN_REPLICAS:
            verdict = _doubted(verdict, said or f"{len(self._exporters)} exporters are known")
        elif now_ns - verdict.judged_ns > limit_ns and verdict.judged_ns:
            verdict = _doubted(verdict, "nothing was judged for more than an hour: see /v1/drift")
        elif said:
            verdict = verdict._replace(reason=f"{verdict.reason}; {said}")
        return verdict

    def _save(self) -> None:
        if self._channel is not None and self._kind is not None:
            self._memory.save(self._channel, self._kind.key, self._clock_ns())


class _Memory:
    """What of the channel survives a restart."""

    def __init__(self, file: SnapshotFile | None) -> None:
        self._file = file
        self._saved: Snapshot | None = None
        self._last: tuple[int, bool] | None = None
        self.reason = ""
        if file is None:
            self.reason = (
                "kept in memory alone, so a restart begins again; set SIDECAR_STATE_DIR to a "
                "folder that lasts"
            )
            return
        try:
            self._saved = file.read()
        except StoreError as error:
            self._refuse(error)

    def restore(self, channel: ContrastChannel, key: str) -> None:
        """Go on from what was kept, once, when it is of the same kind of windows."""
        saved, self._saved = self._saved, None
        try:
            state = saved and saved.state(_NAME, key)
            if state is not None:
                channel.restore(state)
        except StateError as error:
            self._refuse(error)

    def save(self, channel: ContrastChannel, key: str, now_ns: int) -> None:
        """Keep the channel, when it has judged or been acknowledged since."""
        verdict = channel.get(now_ns)
        if self._file is None or self._last == (verdict.judged_ns, verdict.is_acknowledged):
            return
        try:
            self._file.write(Snapshot(now_ns, {_NAME: Saved(key, channel.export())}))
        except StoreError as error:
            self.reason = str(error)
        else:
            self.reason = ""
            self._last = (verdict.judged_ns, verdict.is_acknowledged)

    def _refuse(self, error: Exception) -> None:
        self.reason = f"the kept state was refused, so it starts again: {error}"
        _log.warning("fleet: %s", self.reason)


def _collecting(reason: str) -> Verdict:
    return Verdict(_NAME, ChannelState.COLLECTING, reason)


def _doubted(verdict: Verdict, reason: str) -> Verdict:
    """The same for a reason not to rely on it: it is not armed, but a page stays a page."""
    is_page = verdict.state is ChannelState.PAGE
    state = verdict.state if is_page else ChannelState.COLLECTING
    return verdict._replace(state=state, reason=f"{reason}; {verdict.reason}")
