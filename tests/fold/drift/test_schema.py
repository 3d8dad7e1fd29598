"""Streams and observations: which number of a signature is what."""

import numpy as np

from sidecar.fold.drift.observation import observation_of
from sidecar.fold.drift.schema import Schema, Stream
from sidecar.fold.signatures import Signed
from sidecar.wire.frame import Signature
from sidecar.wire.signature import Layout, entries, size

LAYOUT = Layout([0, 3], [3], [0], [3], 2, 7, ["tone/of voice"])


def test_every_entry_but_the_sketches_is_a_stream() -> None:
    """Single directions of a sketch mean nothing alone, all else is judged."""
    names = [stream.name for stream in Schema.of(LAYOUT).streams]

    assert names == [name for name in entries(LAYOUT) if not name.startswith("sketch/")]


def test_a_stream_says_what_it_is_of() -> None:
    """Phase, layer and signal are told apart, also where a probe's name has a slash."""
    streams = {stream.name: stream for stream in Schema.of(LAYOUT).streams}

    assert streams["residual/decode/l3/log_rms"] == Stream(
        "residual/decode/l3/log_rms", "decode", 3, "log_rms"
    )
    assert streams["router/prefill/l0/gate_entropy"].layer == 0
    assert streams["confidence/min_logprob"][1:] == ("decode", None, "min_logprob")
    assert streams["probe/tone/of voice"][1:] == ("", None, "tone/of voice")


def test_scalars_are_the_entries_of_the_streams() -> None:
    """A value comes out under the name that it went in with, also from many at once."""
    values = np.arange(size(LAYOUT), dtype=np.float32)
    schema = Schema.of(LAYOUT)
    by_name = dict(zip(entries(LAYOUT), values, strict=True))

    assert [by_name[stream.name] for stream in schema.streams] == schema.scalars(values).tolist()
    assert schema.scalars(np.stack([values, values])).shape == (2, schema.num_streams)
    assert schema.scalars(values).dtype == np.float64


def test_layouts_differ_by_digest() -> None:
    """Equal layouts have one digest, and another seed of the sketches has another."""
    other = Layout([0, 3], [3], [0], [3], 2, 8, ["tone/of voice"])

    assert Schema.of(LAYOUT) == Schema.of(Layout(*_fields(LAYOUT)))
    assert Schema.of(LAYOUT).digest == Schema.of(Layout(*_fields(LAYOUT))).digest
    assert hash(Schema.of(LAYOUT)) == hash(Schema.of(Layout(*_fields(LAYOUT))))
    assert Schema.of(LAYOUT).digest != Schema.of(other).digest


def test_an_observation_has_no_id() -> None:
    """All that drift needs of a signature is kept, and nothing that names the request."""
    values = np.arange(size(LAYOUT), dtype="<f4")
    signature = Signature(
        id="secret-id",
        t_ns=5,
        is_final=True,
        num_prompt_tokens=10,
        num_generated_tokens=20,
        adapter="lora",
        preemptions=0,
        values=values.tobytes(),
        route="chat",
        canary="p1@1700000000000",
    )
    observation = observation_of(Signed("engine-dp0-pp0-tp0", LAYOUT, signature))

    assert "secret-id" not in repr(observation)
    assert observation[:-1] == (
        *(5, "engine-dp0-pp0-tp0", "chat", "lora", 10, 20, "p1@1700000000000"),
    )
    assert observation.values.tolist() == values.tolist()


def _fields(layout: Layout) -> list[object]:
    return [getattr(layout, name) for name in Layout.__struct_fields__]
