"""The benches of detection that stand on the bundled model: noise, changes, pools and rounds."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from bench.detection import (
    canary,
    contrast,
    merge,
    noise,
    pools,
    rounds,
    served,
    tamper,
    text,
    traffic,
    trigger,
)
from sidecar.fold.drift.canary_judge import Pace
from sidecar.fold.drift.canary_streams import CanaryStreams
from sidecar.fold.drift.schema import Schema
from sidecar.wire.signature import Layout, size

LAYOUT = Layout(layers=[0, 1], sketch_layers=[0, 1], sketch_size=4)
WORDS = {
    "prose": np.arange(1, 900, dtype=np.uint16),
    "code": np.arange(900, 5, -1, dtype=np.uint16),
}


@pytest.fixture(scope="module")
def model():
    """The bundled model, bfloat16."""
    return served.bundled()


def test_all_of_k_is_summed_once_whatever_the_split() -> None:
    """Parts are disjoint, cover the width, and begin at tiles."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(200):
        spans = sorted(noise.parts(224, draw))
        assert spans[0][0] == 0
        assert spans[-1][1] == 224
        assert all(a[1] == b[0] and b[0] % noise.TILE == 0 for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_split_product_is_the_product_up_to_the_rounding_of_its_sum(dtype) -> None:
    """And repeats differ, which a CPU by itself would not show; coarser sums differ more."""
    draw = torch.Generator().manual_seed(1)
    x, weight = torch.randn(64, 640, generator=draw), torch.randn(32, 640, generator=draw)
    exact = x @ weight.T
    found = [noise.product(x, weight, draw, dtype) for _ in range(8)]
    error = max(float((each - exact).abs().max() / exact.abs().max()) for each in found)
    assert error < {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    assert any(not torch.equal(found[0], each) for each in found[1:])


def test_noise_is_in_every_linear_layer_and_its_seed_draws_it() -> None:
    """The same seed gives the same bits; another one others."""
    torch.manual_seed(2)
    plain = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    x = torch.randn(32, 64)

    def noisy(seed: int) -> torch.Tensor:
        layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        layers.load_state_dict(plain.state_dict())
        split = noise.split(layers, seed, "bfloat16")
        return torch.stack([split(x) for _ in range(4)]).detach()

    assert torch.equal(noisy(3), noisy(3))
    assert not torch.equal(noisy(3), noisy(4))
    assert torch.allclose(noisy(3), plain(x), atol=0.1)


def test_permuted_heads_compute_the_same_and_are_another_file(model) -> None:
    """The control: activations say that nothing changed, the digest that everything did."""
    ids = torch.arange(5, 45)[None]
    exact = model.float()
    permuted = tamper.applied(tamper.permuted, exact, 0)
    with torch.inference_mode():
        before, after = exact(input_ids=ids).logits, permuted(input_ids=ids).logits
    assert torch.allclose(before, after, atol=1e-4)
    assert tamper.changed(exact, permuted) > 0.05
    assert canary.digest(exact) != canary.digest(permuted)
    model.to(torch.bfloat16)


def test_changes_change_what_they_name_and_leave_the_original_alone(model) -> None:
    """Rounding hits most weights, noise one matrix, a swap two layers."""
    digest = canary.digest(model)
    shares = {
        name: tamper.changed(model, tamper.applied(change, model, 0))
        for name, change in {
            "int4": tamper.quantised(4, tamper.GROUP),
            "noise": tamper.noise(0.1),
            "swap": tamper.swapped,
        }.items()
    }
    matrix = dict(model.named_parameters())[tamper.NOISY].numel()
    whole = sum(each.numel() for each in model.parameters())
    assert 0.5 < shares["int4"] < 0.9  # not the embedding
    assert shares["noise"] == pytest.approx(matrix / whole, rel=0.1)
    assert 0.2 < shares["swap"] < 0.6
    assert canary.digest(model) == digest


def test_a_step_of_fine_tuning_moves_weights_and_an_adapter_moves_few(model) -> None:
    """Both end in bfloat16, with nothing of the training left on them."""
    step = tamper.applied(tamper.tuned(WORDS, 1, 1e-4), model, 0)
    lora = tamper.applied(tamper.merged(WORDS, steps=1), model, 0)
    assert tamper.changed(model, step) > 0.05
    assert 0 < tamper.changed(model, lora) < 0.2
    for each in (step, lora):
        assert {weight.dtype for weight in each.parameters()} == {torch.bfloat16}
        assert not any(weight.requires_grad for weight in each.parameters())


def test_every_case_has_a_name_of_its_own_and_the_last_is_the_control() -> None:
    """Files are named after them."""
    cases = tamper.cases(WORDS, served.tokenizer())
    assert len({case.slug for case in cases}) == len(cases)
    assert [case.finds for case in cases] == [True] * (len(cases) - 1) + [False]


def test_prompts_are_runs_of_text_and_the_same_for_a_seed() -> None:
    """Lengths lie in their range, domains come by their shares."""
    shares = {"prose": 0.25, "code": 0.75}
    drawn = text.draw(WORDS, np.random.default_rng(0), 400, shares)
    assert drawn == text.draw(WORDS, np.random.default_rng(0), 400, shares)
    assert all(text.FEWEST <= len(each.tokens) <= text.MOST for each in drawn)
    assert all(np.all(np.abs(np.diff(each.tokens)) == 1) for each in drawn)
    assert sum(each.domain == "code" for each in drawn) / 400 == pytest.approx(0.75, abs=0.08)


def test_requests_are_served_once_and_come_back_out_of_the_cache(
    model, tmp_path, monkeypatch
) -> None:
    """Each has its own signature, in the order of the prompts; a second call serves nothing."""
    monkeypatch.setattr(pools, "CHUNK", 6)
    source = pools.Source("bundled", model, WORDS)
    pool = source.pool("test", 6, {"prose": 0.5, "code": 0.5}, tmp_path)
    assert pool.num == 6
    assert np.isfinite(pool.values).all()
    assert len(np.unique(pool.values[:, 0])) == 6
    monkeypatch.setattr(pools.Source, "_serve", None)
    again = source.pool("test", 6, {"prose": 0.5, "code": 0.5}, tmp_path)
    assert np.array_equal(again.values, pool.values)


def test_rounds_of_canaries_repeat_exactly_without_noise_and_not_with_it(model, tmp_path) -> None:
    """Two prompts, two rounds, through the tap; noise comes from the emulation alone."""
    asked = [list(range(5, 40)), list(range(40, 90))]
    calm = rounds.serve(model, asked, 2)
    assert calm.num_tokens.tolist() == [35, 50]
    assert np.array_equal(calm.values[0], calm.values[1], equal_nan=True)
    noisy = rounds.kept("test", lambda: model, "bfloat16", asked, 2, tmp_path)
    assert not np.array_equal(noisy.values[0], noisy.values[1], equal_nan=True)
    again = rounds.kept("test", None, "bfloat16", asked, 2, tmp_path)
    assert np.array_equal(again.values, noisy.values, equal_nan=True)


def test_rounds_to_find_are_counted_from_the_first_round_of_a_change() -> None:
    """A jump of many floors pages by the hard rule in the second; what is calm never does."""
    streams = CanaryStreams.of(LAYOUT)
    rng = np.random.default_rng(1)
    pace = Pace.of(300)._replace(num_rounds=40)
    judge = canary.learnt(streams, drawn_rounds(rng, 40), pace)
    assert judge.is_complete
    calm = canary.seen(judge, streams, drawn_rounds(rng, 6))
    moved = canary.seen(judge, streams, drawn_rounds(rng, 6, shift=40.0))
    assert (calm.hard, calm.evidence) == (np.inf, np.inf)
    assert moved.hard == 2
    assert moved.onset == 0
    assert moved.share > 1


def test_a_bad_replica_is_named_and_like_ones_are_not() -> None:
    """Synthetic requests of one stratum: a shift of one request-sd pages within the patience."""
    schema = Schema.of(LAYOUT)
    rng = np.random.default_rng(2)
    strata = np.zeros(400, np.int64)
    good = contrast.Rows(["a"], strata, rng.standard_normal((400, schema.num_streams)))
    bad = good._replace(values=good.values + 1.0)
    assert contrast.outcome(schema, good, bad, rng, 24, 60).is_right
    assert contrast.outcome(schema, good, good, rng, 8, 60).delay == np.inf


def test_merged_replicas_are_the_pooled_fit() -> None:
    """In any order, to 1e-12."""
    found = merge.compared(
        LAYOUT, fake_pool(np.random.default_rng(3), 1200), 2, np.random.default_rng(4)
    )
    assert len(found) == 2
    assert max(max(each) for each in found) < merge.LIMIT


def test_a_shift_in_traffic_keeps_its_route_and_a_mix_shift_changes_shares() -> None:
    """Foreign requests stand in for those of a route; asked shares are what comes."""
    rng = np.random.default_rng(5)
    pool = fake_pool(rng, 900)
    foreign = fake_pool(rng, 50)._replace(names=("german", "unused"))
    kind = traffic.Kind("", pool, None, foreign, 0.5)
    items = list(traffic.drawn(kind, np.random.default_rng(6), 20))
    assert {each.route for each in items} == {"prose", "code"}
    mixed = traffic.Kind("", pool, (0.1, 0.9))
    routes = [each.route for each in traffic.drawn(mixed, np.random.default_rng(7), 20)]
    assert routes.count("code") / len(routes) == pytest.approx(0.9, abs=0.04)


def test_auroc_is_the_chance_of_the_larger_score() -> None:
    """0.5 for equals, 1 for apart; ties count half."""
    assert trigger.auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert trigger.auroc(np.array([1.0]), np.array([1.0, 1.0])) == 0.5
    assert trigger.auroc(np.array([0.0, 2.0]), np.array([1.0])) == 0.5


def drawn_rounds(rng, num: int, shift: float = 0.0) -> rounds.Rounds:
    """Rounds of ten prompts that repeat up to noise of 1e-3; a shift is in such units."""
    means = np.random.default_rng(99).uniform(1.0, 2.0, (10, size(LAYOUT)))
    values = means + 1e-3 * (rng.standard_normal((num, 10, size(LAYOUT))) + shift)
    return rounds.Rounds(values.astype(np.float32), np.full(10, 40))


def fake_pool(rng, num: int) -> pools.Pool:
    """Requests of two domains that lie apart."""
    domains = rng.integers(2, size=num)
    values = rng.standard_normal((num, size(LAYOUT))) + domains[:, None]
    lengths = np.full((num, 2), (40, 3))
    return pools.Pool(("prose", "code"), domains, lengths, values.astype(np.float32))
