"""What a start-up tells the user while it lasts.

Guarantee: a new stage is told at once, and an unchanged one again every `SECONDS_BETWEEN_LINES`,
so as long as `note` is called at least once a second nothing is silent for 6 s.
"""

from collections.abc import Callable, Iterable
from typing import Final

SECONDS_BETWEEN_LINES: Final = 5.0

# Words in vLLM's log, in the order in which they appear, and the stage that they open.
VLLM_STAGES: Final = (
    ("Resolved architecture", "reading the model's configuration"),
    ("Initializing a V1 LLM engine", "starting the engine"),
    ("Starting to load model", "loading weights"),
    ("Warming up model for the compilation", "compiling the model"),
    ("Warming up done", "making the KV cache"),
    ("Starting vLLM server", "opening the port"),
)
FIRST_VLLM_STAGE: Final = "importing torch and vLLM"


class Progress:
    """Lines such as `[ 12 s] vLLM: compiling the model`."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._say = say
        self._clock = clock
        self._began = clock()
        self._stage = ""
        self._last = self._began

    @property
    def seconds(self) -> float:
        """Time since this start-up began."""
        return self._clock() - self._began

    def note(self, stage: str) -> None:
        """Say a stage, unless it was said less than `SECONDS_BETWEEN_LINES` ago."""
        now = self._clock()
        if stage == self._stage and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._stage, self._last = stage, now
        self._say(f"[{now - self._began:3.0f} s] {stage}")


def vllm_stage(lines: Iterable[str], stage: str) -> str:
    """The stage that vLLM is in after these lines of its log, given the one before them."""
    for line in lines:
        stage = next((name for words, name in VLLM_STAGES if words in line), stage)
    return stage
