"""The seat in a worker: tap the model when it is loaded, measure once it is warm.

`WorkerWrapperBase.init_device` is the one place that 0.26, 0.32 and 0.33 pass in every worker,
forked or spawned, before the model exists. Methods of the worker instance are wrapped from there.
Whatever cannot be tapped is refused with a reason that travels as a status frame.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from sidecar import __version__
from sidecar.config import TapConfig
from sidecar.errors import ConfigError, SidecarError, TapRefused, WeightsUnread
from sidecar.tap.aside import MAX_STEPS
from sidecar.tap.engine import EngineTap
from sidecar.tap.guard import Guard
from sidecar.tap.nameplate import Nameplate
from sidecar.tap.notary import Notary
from sidecar.tap.rows import NO_GAP, Batch, Ints
from sidecar.tap.sites import Site, find_sites
from sidecar.tap.slab import Slab
from sidecar.tap.stream import attach_probe, rehearse
from sidecar.tap.vllm import (
    attention,
    confidence,
    drafts,
    features,
    fingerprint,
    fitting,
    identity,
    projection,
    refusal,
    releases,
    router,
    runner_v1,
    runner_v2,
    weights,
)
from sidecar.tap.vllm.fitting import Workbench
from sidecar.tap.vllm.options import model_name, options_of
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Source

# What is measured beside the residual stream, by group of signals.
_FITTERS: Final[dict[str, fitting.Fitter]] = {
    "attention": attention.fit,
    "router": router.fit,
    "projection": projection.fit,
    "confidence": confidence.fit,
}
_PATCHED: Final = "_sidecar_patched"
_ROW_MARGIN: Final = 64  # sequence parallelism pads batches by less than this


def install() -> None:
    """Patch the worker wrapper; a second call changes nothing."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase  # noqa: PLC0415 - only when on

    original = WorkerWrapperBase.init_device
    if hasattr(original, _PATCHED):
        return

    @functools.wraps(original)
    def init_device(wrapper: Any) -> None:
        original(wrapper)
        try:
            seat_worker(wrapper.worker, wrapper.vllm_config)
        except Exception as error:  # the worker must start, whatever happens to us
            _LOG.warning("sidecar: error while seating the tap", exc_info=error)
            refusal.report_unread(_meeting_point(), TapRefused(f"unread layout: {error!r}"))

    setattr(init_device, _PATCHED, True)
    WorkerWrapperBase.init_device = init_device


def seat_worker(worker: Any, vllm_config: Any) -> None:
    """Prepare `worker`, whose device is ready and whose model is not loaded yet."""
    engine = _engine(vllm_config)
    try:
        config = TapConfig.read(os.environ, options_of(vllm_config))
        config.key(), config.canary_key()  # or found wanting only when the model is loaded
    except ConfigError as error:
        config = _meeting_point()
        refusal.report(config, _source(vllm_config), engine, error, Guard(config.max_errors))
        return
    guard = Guard(config.max_errors)
    seat = Seat(worker, vllm_config, config, engine, guard)
    try:
        seat.prepare()
    except SidecarError as error:
        refusal.report(config, seat.source, engine, error, guard)


class Seat:
    """One worker's tap, from before its model is loaded to its shutdown."""

    def __init__(
        self, worker: Any, vllm_config: Any, config: TapConfig, engine: Nameplate, guard: Guard
    ) -> None:
        self.source = _source(vllm_config)
        self._engine = engine
        self._worker = worker
        self._vllm_config = vllm_config
        self._config = config
        self._guard = guard
        self._capacity = _capacity(vllm_config)
        self._tap: EngineTap | None = None
        self._drafts: dict[str, list[int]] = {}

    def prepare(self) -> None:
        """Check what can be checked before the model exists, and wrap the worker's methods.

        Raises TapRefused with the reason when this engine cannot be tapped.
        """
        module = _runner_module(self._worker.model_runner)
        features.check(self._vllm_config, module.__name__)
        self._engine.runner = module.__name__.rpartition("_")[2]
        self._engine.fingerprint = fingerprint.fingerprint(self._capacity, self._config)
        # On every rank, although only the first of a tensor-parallel group speaks: ranks share
        # the parts of a compile cache key.
        fingerprint.write(self._vllm_config, self._engine.fingerprint)
        rehearse(self._guard)
        _after(self._worker, "load_model", self._guarded("attach", self._attach))
        _after(self._worker, "compile_or_warm_up_model", self._guarded("arm", self._arm))
        _before(self._worker, "execute_model", self._guarded("schedule", self._schedule))
        _before(self._worker, "shutdown", self._guarded("stop", self._stop))

    def _guarded(self, site: str, call: Callable[..., None]) -> Callable[..., None]:
        return functools.partial(self._guard.run, site, call)

    def _attach(self) -> None:
        try:
            self._tap = self._attached()
        except SidecarError as error:
            self._refuse(error)
        except Exception as error:  # the model must load, and the reason must travel
            self._guard.count("attach", error)
            self._refuse(TapRefused("the tap failed to attach; see the engine's log"))

    def _refuse(self, error: SidecarError) -> None:
        # The key is made at the first forward pass: an untapped graph must not load, nor become,
        # the artefact of the tapped one.
        untapped = f"{self._engine.fingerprint}-refused"
        self._guard.run("refuse", fingerprint.write, self._vllm_config, untapped)
        refusal.report(self._config, self.source, self._engine, error, self._guard)

    def _attached(self) -> EngineTap:
        runner = self._worker.model_runner
        self._engine.identity = identity.identify(self._vllm_config, self._worker.device)
        sites = _sites(runner, self._vllm_config)
        # The residual stream is the same on every rank of a tensor-parallel group: one speaks.
        spoken = [] if self.source.tp else sites
        slab = self._slab(len(spoken))
        with contextlib.ExitStack() as undo:
            bench = self._bench(sites, spoken, slab, undo)
            fitting.fit(bench, _FITTERS)
            for index, site in enumerate(spoken):
                also = bench.readers.get(site.layer)
                undo.callback(attach_probe(site, slab.rows[index], self._guard, also))
            tap = EngineTap(
                self._config,
                self._engine,
                [site.layer for site in spoken],
                slab,
                Sender(self._config.socket, self.source, self._config.key()),
                self._guard,
                bench.max_requests,
                bench.instruments,
                notary=self._notary(),
                most_together=MAX_STEPS,
            )
            observe = functools.partial(self._observe, tap)
            _runner_module(runner).wrap(runner, self._draft_counts, observe)
            if self._vllm_config.speculative_config is not None:
                drafts.wrap(runner, functools.partial(self._settle, tap))
            for seat in bench.seats:
                seat(tap)
            tap.start()
            undo.pop_all()
        return tap

    def _notary(self) -> Notary | None:
        """Who attests the files; every rank loads from the same ones, so the first of them does."""
        if self.source.tp or self.source.pp:
            return None
        if not self._config.weights_digest:
            return Notary.absent("switched off; set SIDECAR_WEIGHTS_DIGEST=1")
        try:
            return Notary(weights.files_of(self._vllm_config))
        except WeightsUnread as error:
            return Notary.absent(str(error))
        except Exception as error:  # another release's configuration; the tap works without
            self._guard.count("notary", error)
            return Notary.absent("the files could not be listed; see the engine's log")

    def _bench(
        self, sites: list[Site], spoken: list[Site], slab: Slab, undo: contextlib.ExitStack
    ) -> Workbench:
        return Workbench(
            self._worker.model_runner,
            self._vllm_config,
            self._config,
            self._guard,
            self.source,
            sites,
            self._capacity,
            slab.max_groups,
            self._worker.device,
            undo,
            fitting.plain(self._config, [site.layer for site in spoken]),
            self._draft_counts,
        )

    def _slab(self, num_layers: int) -> Slab:
        max_requests = self._vllm_config.scheduler_config.max_num_seqs
        # A request spans two populations in one step at most, but for rare short prompts; and
        # each draft token has a group of its own.
        speculative = self._vllm_config.speculative_config
        num_drafts = 0 if speculative is None else speculative.num_speculative_tokens
        max_groups = min(4 * max_requests, 2 * max_requests + 256) + num_drafts * max_requests
        return Slab(num_layers, self._capacity, max_groups, self._worker.device)

    def _draft_counts(self, req_ids: list[str]) -> Ints:
        """[n] draft tokens of each request of the step under way; empty when there are none."""
        drafts = self._drafts
        if not drafts:
            return NO_GAP
        return np.array([len(drafts.get(req_id, ())) for req_id in req_ids], np.int64)

    def _observe(self, tap: EngineTap, read: Callable[[], Batch | None]) -> None:
        batch = self._guard.run("read", read)
        if batch is not None:
            self._guard.run("step", tap.observe, batch)

    def _settle(self, tap: EngineTap, read: Callable[[], Ints]) -> None:
        accepted = self._guard.run("drafts", read)
        if accepted is not None:
            self._guard.run("drafts", tap.settle, accepted)

    def _arm(self) -> None:
        if self._tap is not None:
            mode = self._vllm_config.compilation_config.mode
            was_warmed_up = bool(mode) or self._worker.device.type == "cuda"
            self._tap.arm(was_warmed_up=was_warmed_up)

    def _schedule(self, scheduler_output: Any, *_: Any, **__: Any) -> None:
        """Take in what the scheduler says before a step: who ended, who is new, who must wait."""
        self._drafts = scheduler_output.scheduled_spec_decode_tokens
        if self._tap is None:
            return
        if scheduler_output.finished_req_ids:
            self._tap.finish(scheduler_output.finished_req_ids)
        roster = self._tap.roster
        for new in scheduler_output.scheduled_new_reqs:
            adapter = None if new.lora_request is None else new.lora_request.lora_name
            roster.enter(new.req_id, adapter, getattr(new.sampling_params, "extra_args", None))
        if scheduler_output.preempted_req_ids:
            roster.preempt(scheduler_output.preempted_req_ids)

    def _stop(self, *_: Any, **__: Any) -> None:
        if self._tap is not None:
            self._tap.stop()


def _meeting_point() -> TapConfig:
    try:
        return TapConfig.meeting_point(os.environ)
    except ConfigError:
        return TapConfig()


def _after(owner: Any, name: str, call: Callable[[], None]) -> None:
    method = getattr(owner, name)

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        call()
        return result

    setattr(owner, name, wrapped)


def _before(owner: Any, name: str, call: Callable[..., None]) -> None:
    method = getattr(owner, name)

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call(*args, **kwargs)
        return method(*args, **kwargs)

    setattr(owner, name, wrapped)


def _engine(vllm_config: Any) -> Nameplate:
    return Nameplate(
        model_name=model_name(vllm_config),
        vllm_version=releases.installed_version(),
        tap_version=__version__,
        dtype=str(vllm_config.model_config.dtype).removeprefix("torch."),
        identity=identity.identify(vllm_config),
    )


def _source(vllm_config: Any) -> Source:
    from vllm.distributed import parallel_state  # noqa: PLC0415 - only when on

    parallel = vllm_config.parallel_config
    dp = getattr(parallel, "data_parallel_index", None) or parallel.data_parallel_rank
    pp = parallel_state.get_pp_group().rank_in_group
    tp = parallel_state.get_tp_group().rank_in_group
    return Source("engine", dp, pp, tp)


def _capacity(vllm_config: Any) -> int:
    """More than the token rows of any forward pass: the scheduler's grant, or a graph's padding.

    Strictly more: traced at the slab's own size, a graph would be fixed to that size.
    """
    sizes = vllm_config.compilation_config.cudagraph_capture_sizes or [0]
    most = max(vllm_config.scheduler_config.max_num_batched_tokens, *sizes)
    return int(-(-most // _ROW_MARGIN) + 1) * _ROW_MARGIN


def _runner_module(runner: Any) -> Any:
    for module in (runner_v1, runner_v2):
        if module.matches(runner):
            return module
    raise TapRefused(f"{type(runner).__name__} looks like no model runner that has been read")


def _sites(runner: Any, vllm_config: Any) -> list[Site]:
    attention = set(map(id, vllm_config.compilation_config.static_forward_context.values()))
    return find_sites(
        runner.get_model(),
        lambda module: id(module) in attention,
        lambda module: type(module).__name__ == "PPMissingLayer",
    )


_LOG = logging.getLogger("sidecar.tap")
