"""Concentration of attention: both forms, torch and Triton's interpreter, against float64."""

import importlib
from types import ModuleType

import numpy as np
import pytest
import torch

from sidecar.tap import concentration
from tests.tap.paged import Case, neighbours

CASES = {
    "plain": Case(),
    "heads first": Case(layout="hnd"),
    "transposed": Case(layout="transposed"),
    "one head each": Case(num_kv_heads=4),
    "one KV head": Case(num_kv_heads=1, num_heads=6),
    "odd head size": Case(head_size=40, num_heads=6),
    "large blocks": Case(block_size=128, layout="transposed"),
    "sharp": Case(sharpness=8.0),
    "window": Case(window=20),
    "window of one": Case(window=1),
    "window at a block": Case(window=32, lengths=(64, 33, 32, 31)),
    "softcap": Case(softcap=2.0, sharpness=8.0),
    "window and softcap": Case(window=9, softcap=5.0, sharpness=4.0, layout="hnd"),
    "bfloat16": Case(dtype=torch.bfloat16),
    "sharp bfloat16": Case(dtype=torch.bfloat16, sharpness=8.0, layout="hnd"),
    "float16": Case(dtype=torch.float16),
    "fp8": Case(dtype=torch.bfloat16, stored=torch.float8_e4m3fn, factors=(0.5, 0.5)),
    "fp8 per head": Case(dtype=torch.bfloat16, stored=torch.float8_e4m3fn, factors=(0.25, 3.0)),
    "fp8 e5m2": Case(dtype=torch.float16, stored=torch.float8_e5m2, factors=(2.0, 0.5)),
    "some requests": Case(places=(3, 0), lengths=(40, 9, 3, 50)),
    "one request twice": Case(places=(1, 1), lengths=(5, 30)),
}
TILED = {  # only a CPU keeps its keys so
    "tiled": Case(layout="tiled", block_size=32, dtype=torch.bfloat16),
    "large tiled blocks": Case(layout="tiled", block_size=128, window=40, lengths=(200, 1, 129, 9)),
}


class Kernel:
    """The Triton kernels behind the interface of `concentration.measure`."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def measure(self, query, keys, table, places, lengths, out=None, num_parts=2):
        out = torch.full((*query.shape[:2], 4), torch.nan) if out is None else out
        # The interpreter computes with numpy, which warns of numbers that are not finite.
        with np.errstate(invalid="ignore"):
            self._module.measure(
                query, keys, table, places, lengths, out, block_tokens=16, num_parts=num_parts
            )
        return out


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    """The kernels in Triton's interpreter, which is chosen when they are decorated."""
    return Kernel(importlib.import_module("sidecar.tap.concentration_kernel"))


@pytest.fixture(params=["torch", "triton"])
def form(request: pytest.FixtureRequest) -> object:
    """Each form of the operation."""
    return concentration if request.param == "torch" else request.getfixturevalue("kernel")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_signals_are_those_of_the_definition(case: Case, form) -> None:
    """Of the same query and keys every head's four signals are right to 1e-4, in any layout."""
    assert_expected(form.measure(*case.arguments), case)


@pytest.mark.parametrize("case", TILED.values(), ids=TILED)
def test_tiles_of_keys_are_unpacked(case: Case) -> None:
    """As exactly as keys that stand in rows."""
    assert_expected(concentration.measure(*case.arguments), case)


def assert_expected(signals: torch.Tensor, case: Case) -> None:
    measured, expected = signals.numpy(), case.expected()
    np.testing.assert_allclose(measured[..., [0, 1, 3]], expected[..., [0, 1, 3]], atol=1e-4)
    np.testing.assert_allclose(measured[..., 2], expected[..., 2], rtol=1e-4)


@pytest.mark.parametrize("case", [*CASES.values(), *TILED.values()], ids=[*CASES, *TILED])
def test_layers_at_once_are_layers_one_by_one(case: Case) -> None:
    """Each keeps its queries, its keys and its place in the result."""
    layers = neighbours(case, 3)
    queries = [each.query for each in layers]
    keys = [each.keys for each in layers]
    out = torch.full((3, *queries[0].shape[:2], 4), torch.nan)
    concentration.measure_layers(queries, keys, *case.arguments[2:], out)
    for measured, each in zip(out.numpy(), layers, strict=True):
        expected = each.expected()
        np.testing.assert_allclose(measured[..., [0, 1, 3]], expected[..., [0, 1, 3]], atol=1e-4)
        np.testing.assert_allclose(measured[..., 2], expected[..., 2], rtol=1e-4)


@pytest.mark.parametrize(
    "other",
    [
        Case(window=20),
        Case(softcap=2.0),
        Case(head_size=40),
        Case(num_kv_heads=4),
        Case(block_size=128),
        Case(dtype=torch.bfloat16),
        Case(factors=(0.5, 0.5)),
    ],
)
def test_what_is_not_alike_is_not_measured_at_once(other: Case) -> None:
    """Anything that the sums depend on, but the keys themselves."""
    assert not Case().keys.is_like(other.keys)
    assert not other.keys.is_like(Case().keys)
    assert other.keys.is_like(neighbours(other, 2)[1].keys)


def test_the_squares_agree_with_two_log_sum_exps(form) -> None:
    """sum p^2 = exp(lse(2s) - 2 lse(s)): twice the query gives twice the logits."""
    case = Case(sharpness=3.0)
    query, keys, *where = case.arguments
    effective = form.measure(query, keys, *where)[..., 2]
    for index, place in enumerate(case.places):
        dense = case.dense[place].repeat_interleave(2, 1)
        logits = keys.scale * torch.einsum("hd,nhd->hn", query[index], dense)
        squares = torch.exp((2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1))
        torch.testing.assert_close(1 / effective[index], squares, atol=1e-5, rtol=1e-5)


def test_one_position_is_fully_concentrated(form) -> None:
    """At n = 1 the entropy is 0 by definition, and everything else 1."""
    measured = form.measure(*Case(lengths=(1,), places=(0,)).arguments)
    assert measured.tolist() == [[[0.0, 1.0, 1.0, 1.0]] * 4]


def test_equal_keys_are_not_concentrated_at_all(form) -> None:
    """With one key everywhere the entropy is log n, and n tokens are effective."""
    case = Case(lengths=(50,), places=(0,))
    case.dense = [case.dense[0][:1].expand(50, -1, -1)]
    case.fill()
    expected = np.broadcast_to([1.0, 1 / 50, 50.0, 4 / 50], (1, 4, 4))
    np.testing.assert_allclose(form.measure(*case.arguments), expected, rtol=1e-5)


@pytest.mark.parametrize("layout", ["nhd", "hnd", "transposed"])
def test_an_index_out_of_range_reads_what_is_there(layout, form) -> None:
    """Stale tables, places and lengths give some number; they never leave the memory."""
    query, keys, table, places, lengths = Case(layout=layout).arguments
    keys.cache.nan_to_num_(0.0)
    wild = torch.tensor([-5, 10**6, 3, -(10**9)])
    for changed in (
        (torch.full_like(table, 2**31 - 1), places, lengths),
        (torch.full_like(table, -7), places, lengths),
        (table, wild, lengths),
        (table, places, wild),
    ):
        assert torch.isfinite(form.measure(query, keys, *changed)).all()


def test_what_is_not_finite_stays_so(form) -> None:
    """A NaN in the query is seen in its own row alone, so that the row can be left out."""
    case = Case()
    case.query[1, 2, 3] = torch.nan
    measured = form.measure(*case.arguments)
    assert not torch.isfinite(measured[1, 2]).all()
    assert torch.isfinite(measured[[0, 2, 3]]).all()


def test_long_contexts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch goes by a few blocks at a time, and carries its sums from piece to piece."""
    monkeypatch.setattr(concentration, "_CHUNK_TOKENS", 32)
    for case in (Case(lengths=(200, 33), places=(0, 1)), CASES["window"], CASES["sharp"]):
        measured = concentration.measure(*case.arguments).numpy()
        np.testing.assert_allclose(measured, case.expected(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_parts", [1, 4, 16])
@pytest.mark.parametrize("name", ["plain", "window", "sharp"])
def test_parts_of_a_context_are_joined(name: str, num_parts: int, kernel: Kernel) -> None:
    """However many programs share the positions, some of them without any, the sums are one."""
    case = CASES[name]
    measured = kernel.measure(*case.arguments, num_parts=num_parts).numpy()
    np.testing.assert_allclose(measured, case.expected(), rtol=1e-4, atol=1e-5)


def test_results_go_where_they_are_wanted(form) -> None:
    """`out` may be a view of a larger buffer, of which nothing else is touched."""
    buffer = torch.full((2, 6, 9, 4), 7.0)
    case = Case()
    view = buffer[1, :4, :4]
    form.measure(*case.arguments, view)
    np.testing.assert_allclose(view, case.expected(), rtol=1e-4, atol=1e-5)
    view.fill_(7.0)
    assert bool((buffer == 7.0).all())
