"""What of a step is ours: stacks as py-spy writes them, and the table of them."""

import pytest

from bench.profiled import MODEL, read, section

MAIN = "thread (7): MainThread;worker_busy_loop (vllm/executor.py:1041)"
MODEL_CALL = "wrap.<locals>.model_forward (sidecar/tap/vllm/runner_v1.py:29)"
FORWARD = "_model_forward (vllm/v1/worker/gpu_model_runner.py:3645)"


def room_of(*frames: str) -> str:
    """The room that a stack of the step's thread is told as."""
    (room,) = read([f"{';'.join([MAIN, *frames])} 3"]).rooms
    return room


def test_a_step_is_split_by_room() -> None:
    observed = "observe (sidecar/tap/engine.py:200)"
    assert room_of("guard.run (sidecar/tap/guard.py:9)", observed) == "engine"
    assert room_of(observed, "collect (sidecar/tap/slab.py:80)", "put (sidecar/tap/ring.py:7)") == (
        "slab"
    )
    seat = "sample (sidecar/tap/vllm/attention.py:11)"
    assert room_of(seat, "bmm (torch/functional.py:1)") == "engine"
    assert room_of(seat, "look (sidecar/tap/attention.py:4)", "bmm (torch/_ops.py:1)") == (
        "attention"
    )


def test_what_wraps_a_call_of_vllm_does_not_own_it() -> None:
    assert room_of(MODEL_CALL, FORWARD, "linear (torch/nn/functional.py:2)") == MODEL
    within = "attached (sidecar/tap/query.py:60)"
    assert room_of(MODEL_CALL, FORWARD, within) == "query"
    assert room_of(MODEL_CALL, FORWARD, within, "forward (vllm/cpu_attn.py:5)") == MODEL


def test_waiting_and_other_threads_are_left_out() -> None:
    lines = [
        f"{MAIN};dequeue (vllm/shm_broadcast.py:5) 90",
        "thread (8): pump;run (sidecar/tap/pump.py:5) 50",
        f"{MAIN};{FORWARD} 9",
        f"{MAIN};collect (sidecar/tap/slab.py:80) 1",
    ]
    profile = read(lines)
    assert profile.rooms == {MODEL: 9, "slab": 1}
    assert profile.ours == pytest.approx(0.1)


def test_the_table_adds_up() -> None:
    lines = [f"{MAIN};{FORWARD} 95", f"{MAIN};a (sidecar/tap/slab.py:80) 2"]
    lines += [f"{MAIN};a (sidecar/tap/confidence.py:80) 3"]
    found = section(read(lines), 8)
    assert [tuple(row) for row in found.rows] == [
        ("sidecar/tap/confidence.py", "3.0%"),
        ("sidecar/tap/slab.py", "2.0%"),
        ("all of ours", "5.0%"),
        (MODEL, "95.0%"),
    ]
    assert found.figures["samples"] == 100
