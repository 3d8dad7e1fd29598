"""Known-safe tasks: the prompts that canaries replay, read from a JSONL file.

One line is one prompt: `{"id", "route", "length", "tags", "prompt"}`. Guarantees: a file is read
whole or refused with its line and the remedy; at most `MAX_BYTES` bytes and `MAX_PROMPTS` prompts
are read; every id is a name that a canary's tag can carry, and stands once. The bundled suite
(`BUNDLED`) holds 32 prompts of four routes in two lengths, written for this project; they ask for
nothing sensitive and hold no personal data.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from sidecar.errors import ConfigError
from sidecar.wire.canary import MAX_PROMPT

BUNDLED: Final = Path(__file__).parent / "suites" / "known_safe.jsonl"
MAX_BYTES: Final = 1 << 20
MAX_PROMPTS: Final = 256
MIN_PROMPTS: Final = 8  # a median over fewer is one prompt's noise
MIN_CHARS: Final = 48  # the first tokens of a prompt are attention sinks, which are not measured
MAX_CHARS: Final = 16_384

_ID: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_PROMPT}}}")
_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One known-safe task.

    id: its name in tags, metrics and reports. route: which kind of traffic it resembles.
    """

    id: str
    route: _Word
    length: Literal["short", "long"]
    prompt: Annotated[str, msgspec.Meta(min_length=MIN_CHARS, max_length=MAX_CHARS)]
    tags: Annotated[list[_Word], msgspec.Meta(max_length=16)] = msgspec.field(default_factory=list)


class Suite(NamedTuple):
    """Prompts in the order of their file. digest: SHA-256 of what is sent, in hex."""

    prompts: tuple[Prompt, ...]
    digest: str

    @property
    def names(self) -> tuple[str, ...]:
        """Ids, in order."""
        return tuple(prompt.id for prompt in self.prompts)


def read_suite(path: Path | None = None) -> Suite:
    """The suite in `path`, or the bundled one. Raises ConfigError, with the line, when refused."""
    path = path or BUNDLED
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        prompt = _prompt(line, f"{path}:{number}")
        if prompt.id in prompts:
            raise ConfigError(f"{path}:{number}: id {prompt.id!r} stands twice; rename one")
        prompts[prompt.id] = prompt
    if not MIN_PROMPTS <= len(prompts) <= MAX_PROMPTS:
        raise ConfigError(
            f"{path}: {len(prompts)} prompts; write {MIN_PROMPTS} to {MAX_PROMPTS}, one a line"
        )
    return Suite(tuple(prompts.values()), _digest(prompts.values()))


def _lines(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"canary suite: {error}; give a file this user can read") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES} bytes; a suite is a few dozen prompts")
    return data.split(b"\n")


def _prompt(line: bytes, place: str) -> Prompt:
    try:
        prompt = _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place}: {error}; fields are {', '.join(_FIELDS)}") from error
    if not _ID.fullmatch(prompt.id):
        raise ConfigError(
            f"{place}: id {prompt.id!r}; use 1 to {MAX_PROMPT} of A-Z, a-z, 0-9, '.', '_' and '-'"
        )
    return prompt


def _digest(prompts: Iterable[Prompt]) -> str:
    sent = [(prompt.id, prompt.prompt) for prompt in prompts]
    return hashlib.sha256(msgspec.json.encode(sent)).hexdigest()


_DECODER: Final = msgspec.json.Decoder(Prompt)
_FIELDS: Final = Prompt.__struct_fields__
