"""Strata: like is compared with like."""

import pytest

from sidecar.fold.drift.strata import is_rare, stratum_of
from tests.fold.drift.traffic import observation


def test_a_stratum_names_route_adapter_and_lengths() -> None:
    """Lengths stand in buckets by powers of 2, and a dash for what nobody named."""
    named = observation()._replace(adapter="sql", num_prompt_tokens=64, num_generated_tokens=31)

    assert stratum_of(named) == "chat|sql|p64-127|g16-31"
    assert stratum_of(named._replace(route="", adapter="")) == "-|-|p64-127|g16-31"


@pytest.mark.parametrize(
    ("num_tokens", "bucket"),
    [(0, "0"), (1, "1"), (2, "2-3"), (3, "2-3"), (4, "4-7"), (127, "64-127"), (128, "128-255")],
)
def test_buckets_are_powers_of_two(num_tokens: int, bucket: str) -> None:
    """Each bucket begins at a power of 2, and no tokens is a bucket of its own."""
    name = stratum_of(observation(num_prompt_tokens=num_tokens))

    assert name.split("|")[2] == f"p{bucket}"


def test_a_length_that_cannot_be_has_a_bucket_too() -> None:
    """However large a number a peer tells, the number of strata is bounded."""
    huge = {stratum_of(observation(num_prompt_tokens=1 << bits)) for bits in (32, 40, 62)}

    assert len(huge) == 1


@pytest.mark.parametrize(
    ("num", "num_all", "rare"),
    [(199, 200, True), (200, 200, False), (200, 20_000, False), (200, 20_001, True)],
)
def test_what_is_rare(num: int, num_all: int, *, rare: bool) -> None:
    """Fewer than 200 requests, or less than 1 %."""
    assert is_rare(num, num_all) is rare
