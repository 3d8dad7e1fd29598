"""Observation: one finished request, without anything that could name it or its words."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.signatures import Signed


class Observation(NamedTuple):
    """What drift is judged by.

    t_ns: Unix time of the end of the request, of the sender's clock.
    source: name of the source that measured it.
    route, adapter: what kind of traffic it is; "" when nobody said, or for the base model.
    canary: `<prompt>@<round>` of a known-safe task; such requests count in no traffic window.
    values: float32 [size(layout)], NaN where nothing was measured.
    """

    t_ns: int
    source: str
    route: str
    adapter: str
    num_prompt_tokens: int
    num_generated_tokens: int
    canary: str
    values: NDArray[np.float32]


def observation_of(signed: Signed) -> Observation:
    """The observation in a final signature; the values are a view of it, read-only."""
    signature = signed.signature
    return Observation(
        t_ns=signature.t_ns,
        source=signed.source,
        route=signature.route,
        adapter=signature.adapter,
        num_prompt_tokens=signature.num_prompt_tokens,
        num_generated_tokens=signature.num_generated_tokens,
        canary=signature.canary,
        values=np.frombuffer(signature.values, "<f4"),
    )
