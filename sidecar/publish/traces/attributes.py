"""What a span says of a request: an allow-list of attributes, each computed from what was told.

Names of `gen_ai.*` are those of https://github.com/open-telemetry/semantic-conventions-genai (of
2026; status: Development). OpenTelemetry has no name for what happens inside a model, so that is
`llm_internals.*`, our own. docs/traces.md lists all.

Guarantees: no prompt, completion, token id or activation: there is no field here that could hold
one; every value is a string, a number or a short list of them; what was not measured is absent.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.gathering import Gathered
from sidecar.fold.unusual import Judged
from sidecar.publish.metrics.collectors import UNOBSERVED
from sidecar.wire.frame import Aborted, Arrays, Cells, Coverage, Finished, Table
from sidecar.wire.signals import GROUPS, LAYER_SIGNALS, POPULATIONS, Position

Value = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]
Attributes = dict[str, Value]

PREFIX: Final = "llm_internals."
PROVIDER: Final = "vllm"
_OPERATIONS: Final = {"chatcmpl-": "chat", "cmpl-": "text_completion"}
_REST: Final = [at for at, (_, position) in enumerate(POPULATIONS) if position is Position.REST]


def operation(request: Gathered) -> str:
    """The well-known name of what the client asked for, by the id that vLLM made."""
    made = request.id if request.serving is None else request.serving.id
    ids = [made, made.partition("_")[2]]  # one of several completions is `<k>_<id>`
    named = (name for start, name in _OPERATIONS.items() for id_ in ids if id_.startswith(start))
    return next(named, "text_completion")


def of_request(request: Gathered) -> Attributes:
    """What any model server could say: `gen_ai.*`."""
    told: Attributes = {
        "gen_ai.operation.name": operation(request),
        "gen_ai.provider.name": PROVIDER,
    }
    if request.model_name:
        told["gen_ai.request.model"] = told["gen_ai.response.model"] = request.model_name
    if request.serving is not None:
        told.update(_serving(request.serving))
    elif request.measured:
        told["gen_ai.usage.input_tokens"] = request.measured[0].request.num_prompt_tokens
    if request.aborted is not None:
        told["gen_ai.response.finish_reasons"] = ["abort"]
    front = request.serving or request.aborted
    if front is not None:
        told.update(_asked(front))
    return told


def of_internals(request: Gathered) -> Attributes:
    """What was measured inside the model: `llm_internals.*`."""
    told: Attributes = {"request.id": request.id}
    if request.measured:
        told["sources"] = [each.source for each in request.measured]
        first = request.measured[0].request
        told["adapter"] = first.adapter
        told["preemptions"] = first.preemptions
        told.update(_coverage(first.coverage))
        told.update(_layers(request))
    for measured in request.measured:
        for table in measured.request.tables:
            told.update(_table(table))
    for signed in request.signed[:1]:
        told["route"] = signed.signature.route
        told["canary"] = signed.signature.canary
    return {PREFIX + name: value for name, value in told.items() if value != ""}


def of_judgement(judged: Judged) -> Attributes:
    """The layers that deviate most, from what, and why the request is anomalous."""
    told: Attributes = {"anomalies": list(judged.anomalies)}
    if judged.deviations:
        told["deviation.reference"] = judged.reference
        told["deviation.layers"] = [each.layer for each in judged.deviations]
        told["deviation.groups"] = [each.group for each in judged.deviations]
        told["deviation.values"] = [round(each.value, 3) for each in judged.deviations]
    return {PREFIX + name: value for name, value in told.items()}


def _serving(done: Finished) -> Attributes:
    told: Attributes = {
        "gen_ai.response.id": done.id,
        "gen_ai.response.finish_reasons": [done.reason],
        "gen_ai.usage.input_tokens": done.prompt_tokens,
        "gen_ai.usage.output_tokens": done.generated_tokens,
        "gen_ai.usage.cache_read.input_tokens": done.cached_tokens,
        "gen_ai.response.time_to_first_chunk": done.time_to_first_token,
    }
    seconds = {
        "queue": done.queue,
        "prefill": done.prefill,
        "decode": done.decode,
        "e2e": done.e2e,
        "per_output_token": done.time_per_output_token,
    }
    told.update({f"{PREFIX}seconds.{name}": value for name, value in seconds.items()})
    return told


def _asked(front: Finished | Aborted) -> Attributes:
    told: Attributes = {
        "gen_ai.request.temperature": front.temperature,
        "gen_ai.request.top_p": front.top_p,
    }
    return {**told, "gen_ai.request.max_tokens": front.max_tokens} if front.max_tokens else told


def _coverage(coverage: Coverage) -> Attributes:
    observed = sum(coverage.observed)
    unobserved = {cause: getattr(coverage, cause) for cause in UNOBSERVED}
    num_rows = observed + sum(unobserved.values())
    told: Attributes = {"coverage.observed_tokens": observed}
    told.update({f"coverage.{cause}_tokens": num for cause, num in unobserved.items() if num})
    if num_rows:
        told["coverage.observed_ratio"] = observed / num_rows
    return told


def _layers(request: Gathered) -> Attributes:
    """Each signal of the residual stream: mean and largest over layers, and where that is.

    Over rows after the first positions, whose values are tens of times larger.
    """
    layers: list[int] = []
    means, largest, nonfinite = [], [], 0
    for measured in request.measured:
        moments = Arrays.unpack(measured.request.moments, len(measured.layers))
        layers += measured.layers
        means.append(_mean(moments))
        largest.append(_largest(moments))
        nonfinite += int(moments.nonfinite.sum())
    told: Attributes = {"nonfinite_values": nonfinite}
    mean, most = np.concatenate(means), np.concatenate(largest)
    for at, signal in enumerate(LAYER_SIGNALS):
        told.update(_summary(signal.id, mean[:, at], most[:, at], layers))
    return told


def _mean(moments: Arrays) -> NDArray[np.float64]:
    """[L, S] over rows of the position class `rest`; NaN where there was none."""
    count = moments.count[_REST].sum(0).astype(np.float64)[:, None]
    sums = moments.sums[_REST, :, :, 0].sum(0)
    mean: NDArray[np.float64] = np.full_like(sums, np.nan)
    np.divide(sums, count, out=mean, where=count > 0)
    return mean


def _largest(moments: Arrays) -> NDArray[np.float64]:
    """[L, S], likewise."""
    ends = moments.extremes[_REST, :, :, 1].astype(np.float64)
    most: NDArray[np.float64] = np.fmax.reduce(ends, axis=0)
    return most


def _summary(
    name: str, mean: NDArray[np.float64], most: NDArray[np.float64], layers: Sequence[int]
) -> Iterator[tuple[str, Value]]:
    if np.isfinite(mean).any():
        yield f"{name}.mean", float(np.nanmean(mean))
    if np.isfinite(most).any():
        at = int(np.nanargmax(np.where(np.isfinite(most), most, np.nan)))
        yield f"{name}.max", float(most[at])
        yield f"{name}.max_layer", layers[at]


def _table(table: Table) -> Attributes:
    """Means of one group's signals over its cells; of probes, the score of each."""
    group, cells = GROUPS[table.group], Cells.unpack(table)
    if table.group == "probe":
        return dict(_probes(table, cells))
    num = float(cells.count.sum())
    name = table.group.removesuffix("_mean")
    axes = tuple(range(cells.count.ndim))
    totals = cells.sums[..., 0].sum(axes)
    pairs = zip(group.signals, totals.tolist(), strict=True)
    return {f"{name}.{signal.id}": total / num for signal, total in pairs if num}


def _probes(table: Table, cells: Cells) -> Iterator[tuple[str, Value]]:
    for probe, count, total in zip(
        table.axes[0], cells.count.tolist(), cells.sums[:, 0, 0].tolist(), strict=True
    ):
        if count and math.isfinite(total):
            yield f"probe.{probe}.score", total / count


def finite(attributes: Mapping[str, Value]) -> Attributes:
    """Without numbers that are none: many receivers refuse a whole batch for one NaN."""
    return {
        name: value
        for name, value in attributes.items()
        if not (isinstance(value, float) and not math.isfinite(value))
    }
