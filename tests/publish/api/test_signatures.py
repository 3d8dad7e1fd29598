"""The answer about signatures."""

import msgspec
import numpy as np
import pytest

from sidecar.publish.api import portion
from sidecar.publish.api.problems import Unanswerable
from sidecar.publish.api.signatures import signatures_answer
from sidecar.wire.signature import entries
from tests import fakes
from tests.fakes import NOW, FakeSource, reduced
from tests.publish.plain import plain


def test_a_signature_is_told_in_full() -> None:
    """Every number to the last bit; what was not measured is null."""
    body = fakes.signatures("a", is_final=False)
    body.signatures[0].route = "chat"
    body.signatures[0].canary = "greeting@1790000000000"
    reducer = reduced(FakeSource().frame(body))
    answer = plain(signatures_answer(reducer.signatures(9)))
    (told,) = answer["signatures"]
    values = told.pop("values")
    expected = np.frombuffer(body.signatures[0].values, "<f4").tolist()

    assert told == {
        "id": "a",
        "source": "engine-dp0-pp0-tp0",
        "layout": 0,
        "t_ns": NOW,
        "is_final": False,
        "num_prompt_tokens": 64,
        "num_generated_tokens": 9,
        "adapter": "support",
        "preemptions": 1,
        "route": "chat",
        "canary": "greeting@1790000000000",
    }
    assert values[1] is None
    assert (values[0], values[2:]) == (expected[0], expected[2:])
    (layout,) = answer["layouts"]
    assert layout.pop("entries") == list(entries(body.layout))
    assert layout == msgspec.structs.asdict(body.layout)


def test_names_are_told_once_per_layout() -> None:
    """And each signature says which names are its own."""
    engine = FakeSource()
    bodies = [fakes.signatures("a", "b"), fakes.signatures("c", layers=[5])]
    reducer = reduced(*(engine.frame(body) for body in (*bodies, fakes.signatures("d"))))
    answer = signatures_answer(reducer.signatures(9))

    assert [(each.id, each.layout) for each in answer.signatures] == [
        *(("d", 0), ("c", 1), ("b", 0), ("a", 0))
    ]
    assert [each.entries for each in answer.layouts] == [
        list(entries(body.layout)) for body in bodies
    ]


def test_an_answer_is_bounded_and_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit; a client that asked for more is told how many do."""
    body = fakes.signatures(*"abcde")
    reducer = reduced(FakeSource().frame(body))
    size = len(body.signatures[0].values) // 4
    monkeypatch.setattr(portion, "MAX_NUMBERS", 3 * 2 * size)
    part = signatures_answer(reducer.signatures(9))

    assert [each.id for each in part.signatures] == ["e", "d", "c"]
    assert part.num_left_out == 2
    with pytest.raises(Unanswerable, match="limit=5") as raised:
        signatures_answer(reducer.signatures(5), 5)
    assert "limit=3 or less" in raised.value.remedy
