"""How unlike the usual a request is: by a baseline, or by the sidecar's own first requests."""

import dataclasses

import numpy as np
import pytest

from sidecar.fold.drift.baseline import Baseline, TailCalibration
from sidecar.fold.drift.tail import ALPHA
from sidecar.fold.gathering import Gathered
from sidecar.fold.requests import Measured
from sidecar.fold.signatures import Signed
from sidecar.fold.unusual import MAX_LEARNT, MIN_LEARNT, Judged, Unusual
from sidecar.wire.frame import Arrays, Signature
from sidecar.wire.signature import Layout, entries, size
from tests import fakes
from tests.fakes import NOW
from tests.publish.drifting import LAYOUT, baseline

NAMES = list(entries(LAYOUT))


def request(
    level: float = 0.0,
    canary: str = "",
    layout: Layout = LAYOUT,
    reason: str = "stop",
    **changed: float,
) -> Gathered:
    """A request whose entries are all at `level`, but for some, by name with _ for /."""
    values = np.full(size(layout), level, "<f4")
    names = [name.replace("/", "_") for name in entries(layout)]
    for name, value in changed.items():
        values[names.index(name)] = value
    signature = Signature("r", NOW, True, 64, 9, "", 0, values.tobytes(), "chat", canary)  # noqa: FBT003
    done = fakes.finished(reason=reason)
    return Gathered("r", "tiny", (), (Signed("engine", layout, signature),), done, None)


def large(num: int = 5000, tail: TailCalibration | None = None) -> Baseline:
    """The baseline of the tests, as if every stratum had `num` requests."""
    made = baseline()
    strata = []
    for each in made.strata:
        moments = each.get()
        moments.n[:] = num
        strata.append(moments)
    return dataclasses.replace(made, strata=tuple(strata), tail=tail)


def verdicts(judged: Judged) -> dict[str, bool]:
    return {each.name: each.is_anomalous for each in judged.verdicts}


def learnt(num: int = MIN_LEARNT) -> Unusual:
    """One that has seen `num` requests of standard normal entries."""
    draws = np.random.default_rng(3)
    unusual = Unusual()
    for _ in range(num):
        values = draws.normal(size=size(LAYOUT)).astype("<f4")
        signature = Signature("r", NOW, True, 64, 9, "", 0, values.tobytes())  # noqa: FBT003
        unusual.judge(Gathered("r", "", (), (Signed("engine", LAYOUT, signature),), None, None))
    return unusual


def test_without_anything_to_compare_nothing_is_said_of_layers() -> None:
    """Not even a name for the usual."""
    judged = Unusual().judge(request())

    assert (judged.deviations, judged.reference, judged.anomalies) == ((), "", ())


def test_own_first_requests_rank_the_layers() -> None:
    """The layer whose entries moved stands first, with the phase where it moved."""
    judged = learnt().judge(request(residual_decode_l1_log_rms=9.0))

    assert judged.deviations[0][:2] == (1, "decode/l1")
    assert judged.deviations[0].value > 4 > judged.deviations[1].value
    assert judged.reference == f"own first {MIN_LEARNT} requests"
    assert judged.anomalies == ()  # enough to rank layers, not to judge


def test_what_is_usual_stands_still_once_learnt() -> None:
    """A slow change does not become the usual."""
    unusual = learnt()
    for _ in range(MAX_LEARNT):
        unusual.judge(request())
    before = unusual.judge(request(residual_decode_l1_log_rms=9.0))
    for _ in range(300):
        unusual.judge(request(residual_decode_l1_log_rms=9.0))
    after = unusual.judge(request(residual_decode_l1_log_rms=9.0))

    assert before.reference == f"own first {MAX_LEARNT} requests"
    assert before == after


def test_known_safe_tasks_are_never_learnt_from() -> None:
    """They are not traffic."""
    unusual = Unusual()
    for _ in range(2 * MIN_LEARNT):
        unusual.judge(request(canary="p1@1"))

    assert unusual.judge(request()).reference == ""


def test_each_layout_has_its_own_usual_and_there_are_not_many() -> None:
    """A sender that makes up layouts costs eight of them."""
    unusual = Unusual()
    for k in range(20):
        for _ in range(MIN_LEARNT):
            unusual.judge(request(layout=Layout([0, 1 + k])))
    told = [unusual.judge(request(layout=Layout([0, 1 + k]))).reference for k in range(20)]

    assert [bool(each) for each in told] == [True] * 8 + [False] * 12


def test_a_baseline_ranks_layers_and_names_itself() -> None:
    """Even one too small to judge single requests."""
    made = baseline()
    judged = Unusual(made).judge(request(residual_prefill_l0_log_peak=30.0))

    assert judged.reference == f"baseline {made.digest[:12]}"
    assert (judged.deviations[0].layer, judged.deviations[0].group) == (0, "prefill/l0")
    assert set(verdicts(judged)) == {"nonfinite"}


@pytest.mark.parametrize(("value", "is_anomalous"), [(0.0, False), (40.0, True)])
def test_a_request_in_the_tail_of_the_baseline_is_anomalous(
    value: float, is_anomalous: bool
) -> None:
    """By the same conformal p-value as the tail channel's."""
    tail = TailCalibration.of(np.linspace(0, 6, 20_000))
    judged = Unusual(large(tail=tail)).judge(request(residual_decode_l1_log_rms=value))
    by_name = {each.name: each for each in judged.verdicts}

    assert by_name["tail"].is_anomalous is is_anomalous
    assert (by_name["tail"].score < ALPHA) is is_anomalous
    assert ("tail" in judged.anomalies) is is_anomalous
    assert "decode/l1" in by_name["tail"].explanation or not is_anomalous


@pytest.mark.parametrize(
    ("entry", "value", "is_anomalous"),
    [
        ("confidence_entropy", 99.0, True),
        ("confidence_entropy", -99.0, False),  # surer than ever is no low confidence
        ("confidence_last_entropy", 99.0, True),
        ("confidence_top1_margin", -99.0, True),
        ("confidence_top1_margin", 99.0, False),
        ("confidence_min_logprob", -99.0, True),
    ],
)
def test_a_model_less_sure_than_in_all_of_the_baseline_is_anomalous(
    entry: str, value: float, is_anomalous: bool
) -> None:
    """On the side of doubt alone, and it says by which number."""
    judged = Unusual(large()).judge(request(**{entry: value}))
    told = next(each for each in judged.verdicts if each.name == "confidence")

    assert told.is_anomalous is is_anomalous
    assert (entry.removeprefix("confidence_") in told.explanation) is is_anomalous
    assert (told.score == pytest.approx(4 / 5001)) is is_anomalous


def test_a_stratum_too_small_says_nothing_of_confidence() -> None:
    """Of 3998 requests, one beyond all others is no rarer than one in a thousand."""
    doubtful = request(confidence_entropy=99.0)

    assert "confidence" not in verdicts(Unusual(large(3998)).judge(doubtful))
    assert verdicts(Unusual(large(3999)).judge(doubtful))["confidence"]
    assert "confidence" not in verdicts(Unusual(large()).judge(request(level=np.nan)))


def test_nan_or_inf_in_any_layer_is_anomalous_and_says_from_which_layer_on() -> None:
    """With and without a baseline."""
    moments = Arrays.zeros(3)
    moments.nonfinite[1:] = 4
    record = fakes.request()
    record.moments = moments.pack()
    measured = (Measured("engine", (7, 8, 9), record),)
    broken = request()._replace(measured=measured)
    for unusual in (Unusual(), Unusual(large())):
        judged = unusual.judge(broken)
        told = next(each for each in judged.verdicts if each.name == "nonfinite")

        assert "nonfinite" in judged.anomalies
        assert (told.score, told.explanation) == (8.0, "NaN or Inf after layer 8 first")


def test_how_a_request_ended_counts_only_without_a_baseline() -> None:
    """With one its verdicts choose, since clients hang up by the thousand."""
    failed = request(reason="error")
    hung_up = request()._replace(serving=None, aborted=fakes.aborted("r"))

    assert Unusual().judge(failed).anomalies == ("error",)
    assert Unusual().judge(hung_up).anomalies == ("aborted",)
    assert Unusual(large()).judge(failed).anomalies == ()
    assert Unusual(large()).judge(hung_up).anomalies == ()


def test_another_baseline_is_taken_at_once() -> None:
    """And the same one changes nothing."""
    unusual = learnt()
    unusual.use(None)
    own = unusual.judge(request()).reference
    unusual.use(baseline())

    assert own == f"own first {MIN_LEARNT} requests"
    assert unusual.judge(request()).reference.startswith("baseline ")
