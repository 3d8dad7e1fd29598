"""The answer about signatures: the latest of each of the last requests, as short vectors.

Guarantees: the names of entries are told once per layout; every number is the one that was told;
what was not measured is null; an answer is bounded, and says how many signatures it leaves out.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from pydantic import BaseModel

from sidecar.fold.signatures import Signed
from sidecar.publish.api.answers import known
from sidecar.publish.api.portion import portion
from sidecar.wire.signature import Layout, entries


class LayoutAnswer(BaseModel):
    """What the entries of signatures are of; two of one layout can be compared.

    The fields of `wire.signature.Layout`, and `entries`: the names of the entries, in order.
    """

    version: int
    layers: list[int]
    attention_layers: list[int]
    router_layers: list[int]
    sketch_layers: list[int]
    sketch_size: int
    sketch_seed: int
    probes: list[str]
    entries: list[str]


class SignatureAnswer(BaseModel):
    """One request. `layout` is a place in `layouts`; `is_final` once the request is over.

    route: its kind of traffic. canary: `<prompt>@<round>` of a proven canary; else empty.
    """

    id: str
    source: str
    layout: int
    t_ns: int
    is_final: bool
    num_prompt_tokens: int
    num_generated_tokens: int
    adapter: str
    preemptions: int
    route: str
    canary: str
    values: list[float | None]


class SignaturesAnswer(BaseModel):
    """Signatures, latest first; `num_left_out` more did not fit into one answer."""

    layouts: list[LayoutAnswer]
    signatures: list[SignatureAnswer]
    num_left_out: int


def signatures_answer(signed: Sequence[Signed], limit: int | None = None) -> SignaturesAnswer:
    """As many of the first of `signed` as fit.

    Raises Unanswerable when a client asked for `limit` of them, and fewer fit.
    """
    kept = portion(signed, _num_numbers, limit)
    places: dict[bytes, int] = {}
    layouts: list[LayoutAnswer] = []
    answers = []
    for each in kept:
        key = msgspec.msgpack.encode(each.layout)
        if key not in places:
            places[key] = len(layouts)
            layouts.append(_layout(each.layout))
        answers.append(_signature(each, places[key]))
    return SignaturesAnswer(
        layouts=layouts, signatures=answers, num_left_out=len(signed) - len(kept)
    )


def _num_numbers(signed: Signed) -> int:
    # The names of a layout may be needed for each, and are longer than numbers.
    return len(signed.signature.values) // 2


def _layout(layout: Layout) -> LayoutAnswer:
    fields = msgspec.structs.asdict(layout)
    return LayoutAnswer(**fields, entries=list(entries(layout)))


def _signature(signed: Signed, layout: int) -> SignatureAnswer:
    signature = signed.signature
    values = np.frombuffer(signature.values, "<f4").tolist()
    return SignatureAnswer(
        id=signature.id,
        source=signed.source,
        layout=layout,
        t_ns=signature.t_ns,
        is_final=signature.is_final,
        num_prompt_tokens=signature.num_prompt_tokens,
        num_generated_tokens=signature.num_generated_tokens,
        adapter=signature.adapter,
        preemptions=signature.preemptions,
        route=signature.route,
        canary=signature.canary,
        values=[known(value) for value in values],
    )
