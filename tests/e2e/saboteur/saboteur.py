"""Breaks the tap on purpose, in every process of a real vLLM; `SABOTAGE` lists how.

On PYTHONPATH this folder is an installed distribution with a vLLM plugin of its own, so the
product needs no switch for its tests.
"""

import functools
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def register() -> None:
    """Break what `SABOTAGE` names."""
    for name in filter(None, os.environ.get("SABOTAGE", "").split(",")):
        SABOTAGE[name]()


def half_residual() -> None:
    """Tap half of the fused residual: the classic bug."""
    from sidecar.tap import stream

    stream._stream_out = lambda outputs: outputs[0] if isinstance(outputs, tuple) else outputs


def swapped_rows() -> None:
    """Give each request the rows of its neighbour when there is one."""
    from sidecar.tap.vllm import runner_v1

    read = runner_v1.read

    def swapped(*args: Any) -> Any:
        batch = read(*args)
        ids = batch.req_ids
        return batch._replace(req_ids=ids[1:] + ids[:1])

    runner_v1.read = swapped


def early_picks() -> None:
    """Sample the rows of the step before, as a seat would that chooses them too early."""
    import numpy as np

    from sidecar.tap.attention import Attention

    ask, rows = Attention.ask, [np.zeros(1, np.int64)]

    def late(sampler: Any, choice: Any) -> None:
        ask(sampler, choice._replace(rows=np.resize(rows[0], len(choice.rows))))
        rows[0] = choice.rows

    Attention.ask = late


def raise_in_probe() -> None:
    """Raise in the probe, once it has passed its rehearsal and a few steps."""
    from sidecar.tap import probes

    record, calls = probes.record, itertools.count()

    def broken(*args: Any) -> None:
        if next(calls) > 60:
            raise RuntimeError("sabotaged probe")
        record(*args)

    probes.record = broken


def raise_in_pump() -> None:
    """Raise whenever the pump drains."""
    from sidecar.tap.engine import EngineTap

    EngineTap._account = _raise


def raise_in_stats() -> None:
    """Raise whenever the stat logger records."""
    from sidecar.tap.vllm import request_stats

    request_stats.EngineStats.record = _raise


def no_fingerprint() -> None:
    """Do not tell the compile cache of the tap."""
    from sidecar.tap.vllm import fingerprint

    fingerprint.write = lambda *_: None


def late_tap() -> None:
    """Attach only after the model has been compiled."""
    from sidecar.tap.vllm import worker

    after = worker._after

    def later(owner: Any, name: str, call: Callable[[], None]) -> None:
        after(owner, "compile_or_warm_up_model" if name == "load_model" else name, call)

    worker._after = later


def log_sends() -> None:
    """Write a line for each frame that is sent, with its time: the harness's own account."""
    from sidecar.wire.channel import Sender

    send, log = Sender.send, os.environ["SEND_LOG"]

    def logged(sender: Any, body: Any, step: int = 0) -> bool:
        is_sent = send(sender, body, step)
        with Path(log).open("a") as lines:
            now = time.monotonic()
            lines.write(f"{sender.source.name} {sender.num_sent} {is_sent} {now}\n")
        return is_sent

    Sender.send = logged


def force_compile() -> None:
    """Make the CPU build compile as a GPU build does, ahead-of-time cache and all."""
    from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass
    from vllm.config import CompilationMode
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__
    if hasattr(original, "forced"):
        return

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        original(cls, vllm_config)
        vllm_config.compilation_config.mode = CompilationMode.VLLM_COMPILE
        vllm_config.compilation_config.compile_sizes = []

    check_and_update_config.forced = True
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
    FixFunctionalizationPass.__call__ = lambda *_: None


def short_minute() -> None:
    """Let the budget's minute pass in 1.2 s, so that a test need not wait for many."""
    from sidecar.tap import governor
    from sidecar.tap.budget import Budget

    governor.Budget = functools.partial(Budget, minute=1.2)


def log_roster() -> None:
    """Write a line for each request that asks to be sampled at every step."""
    from sidecar.tap.roster import Roster

    enter = Roster.enter

    def logged(roster: Any, req_id: str, *args: Any) -> None:
        enter(roster, req_id, *args)
        if req_id in roster.forced:
            print(f"saboteur: forced {req_id}", flush=True)

    Roster.enter = logged


def _raise(*_: Any, **__: Any) -> None:
    raise RuntimeError("sabotaged")


SABOTAGE: dict[str, Callable[[], None]] = {
    call.__name__: call
    for call in (
        half_residual,
        swapped_rows,
        early_picks,
        raise_in_probe,
        raise_in_pump,
        raise_in_stats,
        no_fingerprint,
        late_tap,
        log_sends,
        force_compile,
        short_minute,
        log_roster,
    )
}
