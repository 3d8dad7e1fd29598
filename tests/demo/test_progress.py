"""What a start-up says, by a clock that the test moves."""

from sidecar.demo.progress import FIRST_VLLM_STAGE, Progress, vllm_stage


class Clock:
    """A clock that stands still unless told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_new_stage_is_said_at_once_and_an_old_one_every_five_seconds() -> None:
    """Called each second for 11 s in one stage, then in another, five lines are said."""
    clock, said = Clock(), list[str]()
    progress = Progress(said.append, clock)
    for _ in range(12):
        progress.note("loading")
        clock.now += 1.0
    progress.note("compiling")
    assert said == ["[  0 s] loading", "[  5 s] loading", "[ 10 s] loading", "[ 12 s] compiling"]
    assert progress.seconds == 12.0


def test_the_stage_follows_vllms_log() -> None:
    """The last stage that the new lines open holds; lines that open none change nothing."""
    lines = [
        "(EngineCore pid=1) INFO Initializing a V1 LLM engine (v0.32.0) with config",
        "(Worker pid=2) INFO Starting to load model /m...",
        "something else",
    ]
    assert vllm_stage(lines, FIRST_VLLM_STAGE) == "loading weights"
    assert vllm_stage(["Route: /health"], "loading weights") == "loading weights"
