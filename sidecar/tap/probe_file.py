"""Probe files: linear probes of your own, read once, checked whole, or refused with the reason.

A probe is one direction w in the residual stream after one decoder layer, a bias b and a way to
pool the rows of a request: its score is w . h + b, pooled. The file is JSON and names a safetensors
file beside it that holds the directions; docs/probes.md says how to make both.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sidecar.errors import TapRefused
from sidecar.tap.pooling import Pooling, Rows

MAX_PROBES: Final = 256
_MAX_PROBLEMS: Final = 3  # told of in one message


class Probe(NamedTuple):
    """One linear probe.

    layer: number of the decoder layer, from 0, whose output stream is read.
    direction: [H]. alpha: of ema; 0 for every other pooling.
    quantiles: scores that this share of the calibration requests did not exceed, by the share as
    it was written.
    """

    name: str
    layer: int
    direction: NDArray[np.float32]
    bias: float
    pooling: Pooling
    alpha: float
    rows: Rows
    quantiles: dict[str, float]


def read(path: Path, num_layers: int, hidden_size: int) -> list[Probe]:
    """The probes of the file at `path`, for a model of so many layers and such a width.

    Raises TapRefused with everything needed to mend the file.
    """
    try:
        told = _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _refused(path, f"{error}; give a file that this user can read") from error
    except ValidationError as error:
        raise _refused(path, _explain(error)) from error
    _check_layers(path, told, num_layers)
    tensors = _tensors(path, told)
    return [
        Probe(
            each.name,
            each.layer,
            _direction(path, each.tensor, tensors, hidden_size),
            each.bias,
            each.pooling,
            each.alpha or 0.0,
            each.rows,
            each.quantiles,
        )
        for each in told.probes
    ]


def content(path: Path) -> bytes:
    """All that a probe file says, its tensors included; what cannot be read is left out."""
    told = b""
    try:
        told = path.read_bytes()
        return told + _beside(path, _File.model_validate_json(told)).read_bytes()
    except (OSError, ValidationError):
        return told


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Share = Annotated[str, Field(pattern=r"^0?\.\d{1,9}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Entry(_Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}$")]
    layer: Annotated[int, Field(ge=0)]
    tensor: str
    bias: _Finite = 0.0
    pooling: Pooling
    alpha: Annotated[float | None, Field(gt=0.0, le=1.0)] = None
    rows: Rows = Rows.ALL
    quantiles: Annotated[dict[_Share, _Finite], Field(max_length=16)] = {}

    @model_validator(mode="after")
    def _alpha_is_of_ema(self) -> Self:
        if (self.pooling is Pooling.EMA) != (self.alpha is not None):
            raise ValueError(f"{self.name}: alpha belongs to pooling ema, which needs it")
        return self


class _File(_Strict):
    format: Literal["llm-internals-probes"]
    version: Literal[1]
    tensors: Annotated[str, Field(pattern=r"^[^/\\]+\.safetensors$")]
    probes: Annotated[list[_Entry], Field(min_length=1, max_length=MAX_PROBES)]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        twice = [
            name for name, num in Counter(each.name for each in self.probes).items() if num > 1
        ]
        if twice:
            raise ValueError(f"more than one probe is named {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _quantiles_agree(self) -> Self:
        # Else a probe would seem never to exceed a quantile that it was not calibrated at.
        for each in self.probes:
            if each.quantiles.keys() != self.probes[0].quantiles.keys():
                raise ValueError(
                    f"{each.name} and {self.probes[0].name} name different quantiles; calibrate "
                    "all probes of a file at the same ones"
                )
        return self


def _check_layers(path: Path, told: _File, num_layers: int) -> None:
    for each in told.probes:
        if each.layer >= num_layers:
            raise _refused(
                path,
                f"{each.name} is at layer {each.layer}; this model has layers 0 to "
                f"{num_layers - 1}",
            )


def _tensors(path: Path, told: _File) -> dict[str, Any]:
    """Tensors of the file beside it, by name."""
    try:
        # Every vLLM image has it; whoever has no probe file does without.
        from safetensors import SafetensorError  # noqa: PLC0415
        from safetensors.torch import load_file  # noqa: PLC0415
    except ImportError as error:
        raise _refused(path, "install safetensors to read its tensors") from error
    try:
        return load_file(_beside(path, told))
    except (OSError, SafetensorError) as error:
        raise _refused(path, f"{told.tensors}: {error}; save it with safetensors") from error


def _direction(
    path: Path, name: str, tensors: dict[str, Any], hidden_size: int
) -> NDArray[np.float32]:
    tensor = tensors.get(name)
    if tensor is None:
        known = ", ".join(sorted(tensors)[:MAX_PROBES]) or "none"
        raise _refused(path, f"no tensor {name}; the tensors file holds {known}")
    if tuple(tensor.shape) != (hidden_size,):
        raise _refused(
            path,
            f"tensor {name} has shape {list(tensor.shape)}; one direction of this model has "
            f"shape [{hidden_size}]",
        )
    direction: NDArray[np.float32] = tensor.float().numpy()
    if not np.isfinite(direction).all():
        raise _refused(path, f"tensor {name} holds NaN or Inf; train that probe again")
    return direction


def _beside(path: Path, told: _File) -> Path:
    return path.parent / told.tensors


def _explain(error: ValidationError) -> str:
    problems = [
        ": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"])))
        for each in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    more = len(problems) - _MAX_PROBLEMS
    return "; ".join(problems[:_MAX_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def _refused(path: Path, problem: str) -> TapRefused:
    return TapRefused(f"probe file {path}: {problem}")
