"""The answer about identity: what each engine executes, and of what its signatures are.

Guarantee: everything that a baseline's header is compared by is here, as the tap said it; "" or 0
is what it could not say.
"""

from collections.abc import Sequence

from pydantic import BaseModel

from sidecar.fold.reducer import Snapshot
from sidecar.fold.signatures import Signed
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout


class EngineAnswer(BaseModel):
    """One engine worker. `layout` is null until it sent a signature.

    identity, layout: fields as on the wire (`wire.frame.Identity`, `wire.signature.Layout`).
    """

    source: str
    identity: dict[str, str | int]
    layout: dict[str, int | list[int] | list[str]] | None


class IdentityAnswer(BaseModel):
    """All engine workers whose tap is heard."""

    engines: list[EngineAnswer]


def identity_answer(snapshot: Snapshot, signed: Sequence[Signed]) -> IdentityAnswer:
    """What is executed; `signed` are the latest signatures, latest first."""
    layouts = {each.source: each.layout for each in reversed(signed)}
    return IdentityAnswer(
        engines=[
            _engine(source.name, source.status.identity, layouts.get(source.name))
            for source in snapshot.sources
            if source.source.role == "engine" and source.status is not None
        ]
    )


def _engine(name: str, identity: Identity, layout: Layout | None) -> EngineAnswer:
    told = {field: getattr(identity, field) for field in Identity.__struct_fields__}
    if layout is None:
        return EngineAnswer(source=name, identity=told, layout=None)
    fields = {field: getattr(layout, field) for field in Layout.__struct_fields__}
    return EngineAnswer(source=name, identity=told, layout=fields)
