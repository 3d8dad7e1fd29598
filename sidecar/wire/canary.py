"""The tag of a canary request: what proves that the operator's canary sent it.

A canary request carries `vllm_xargs={"llm_internals_canary": "<prompt>@<round>:<mac>"}`, where
`<round>` is the Unix time in milliseconds at which the round began, and `<mac>` is the HMAC-SHA256
of `<prompt>@<round>` under the operator's secret, in hex. Guarantees: without the secret nobody can
make a tag that is accepted; a tag seen on its way is worthless `MAX_AGE_MS` after its round began;
looking at a stranger's text costs at most one HMAC over `MAX_TAG` characters. Time is a parameter.
"""

import hmac
import re
from typing import Final, NamedTuple

from sidecar.errors import ConfigError

XARG: Final = "llm_internals_canary"
MAX_PROMPT: Final = 64  # characters of a prompt's name
MAX_AGE_MS: Final = 600_000
MAX_AHEAD_MS: Final = 5_000  # by which the clocks of two machines may differ

_NAME: Final = re.compile(rf"([A-Za-z0-9._-]{{1,{MAX_PROMPT}}})@([1-9][0-9]{{0,14}})")
_HEX_CHARS: Final = 64
MAX_TAG: Final = MAX_PROMPT + 1 + 15 + 1 + _HEX_CHARS


class Canary(NamedTuple):
    """One prompt of one round. prompt: its name in the suite. round_ms: when the round began."""

    prompt: str
    round_ms: int

    def __str__(self) -> str:
        """`<prompt>@<round>`, as it is signed and as it travels in a signature."""
        return f"{self.prompt}@{self.round_ms}"


def tag(canary: Canary, secret: bytes) -> str:
    """The value of `XARG` that proves `canary`.

    Raises ConfigError when the prompt's name or the round could not be read back.
    """
    if parse(str(canary)) != canary:
        raise ConfigError(
            f"canary {str(canary)!r}: name a prompt with 1 to {MAX_PROMPT} of A-Z, a-z, 0-9, '.', "
            "'_' and '-', and a round by its Unix time in milliseconds"
        )
    return f"{canary}:{_mac(str(canary), secret)}"


def proven(given: object, secret: bytes | None, now_ms: int) -> str:
    """`<prompt>@<round>` when `given` is a tag of this secret whose round is of now; else "".

    given: what a client sent, of any type. secret: None proves nothing.
    """
    if secret is None or not isinstance(given, str) or len(given) > MAX_TAG:
        return ""
    name, _, mac = given.partition(":")
    canary = parse(name)
    if canary is None or not _is_of_now(canary.round_ms, now_ms) or not mac.isascii():
        return ""
    return name if hmac.compare_digest(mac, _mac(name, secret)) else ""


def parse(name: str) -> Canary | None:
    """The canary of `<prompt>@<round>`, such as `Signature.canary`; None when it names none."""
    found = _NAME.fullmatch(name)
    return None if found is None else Canary(found[1], int(found[2]))


def _is_of_now(round_ms: int, now_ms: int) -> bool:
    return -MAX_AHEAD_MS <= now_ms - round_ms <= MAX_AGE_MS


def _mac(name: str, secret: bytes) -> str:
    return hmac.digest(secret, name.encode(), "sha256").hex()
