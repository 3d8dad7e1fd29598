"""The seat of confidence: the logits that a sampler gets, whatever it does to them."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.tap.confidence import Confidence, token_signals
from sidecar.tap.engine import Step
from sidecar.tap.guard import Guard
from sidecar.tap.instrument import Instruments
from sidecar.tap.orders import Orders
from sidecar.tap.ring import NUM_LOANS
from sidecar.tap.roster import Roster
from sidecar.tap.rows import RowMap
from sidecar.tap.scan import Scanner
from sidecar.tap.slab import Slab
from sidecar.tap.vllm import confidence
from sidecar.tap.vllm.fitting import Workbench, fit
from sidecar.wire.frame import Cells, Source
from sidecar.wire.signature import Layout
from tests.tap.vllm.samplers import (
    RunnerV1,
    RunnerV2Of26,
    RunnerV2Of32,
    RunnerV2Of33,
    batch_of,
    logits_of,
)

V2 = [RunnerV2Of26, RunnerV2Of32, RunnerV2Of33]
EVERY = [RunnerV1, *V2]


class Seated:
    """A runner with a listener, and as much of a tapped engine as it sees."""

    def __init__(self, runner, source=None, speculative=None, **parallel: object) -> None:
        self.runner = runner
        self.guard = Guard(max_errors=3)
        self.bench = Workbench(
            runner,
            SimpleNamespace(
                scheduler_config=SimpleNamespace(max_num_seqs=4),
                parallel_config=SimpleNamespace(**parallel),
                speculative_config=speculative,
            ),
            TapConfig(),
            self.guard,
            source or Source("engine"),
            [],
            64,
            8,
            torch.device("cpu"),
            contextlib.ExitStack(),
            Instruments(Layout([])),
        )
        self.rows = RowMap(8)
        self.scanner = Scanner([0], Slab(1, 8, 8, torch.device("cpu")))
        self.roster = Roster()
        self.orders = Orders()
        self.last_step: Step | None = None
        self.step = -1

    def fit(self) -> "Seated":
        fit(self.bench, {"confidence": confidence.fit})
        for seat in self.bench.seats:
            seat(self)
        return self

    def observe(self, batch) -> Step:
        """What the engine's tap does after a forward pass."""
        self.last_step = Step(batch, self.rows.plan(batch), 1)
        self.step += 1
        return self.last_step

    def submit(self, sampler, pending) -> None:
        sampler.account(pending)

    def sample(self, logits, grammar=None):
        """The second half of a step, as the runner's own code calls it."""
        if isinstance(self.runner, RunnerV1):
            if grammar is not None:
                logits[grammar] = -torch.inf
            return self.runner._sample(logits, None)
        output, _, _ = self.runner.sample(logits, SimpleNamespace(), grammar)
        return output

    def totals(self) -> Cells:
        (sampler,) = self.bench.instruments.samplers
        (table,) = sampler.totals()
        return Cells.unpack(table)

    def of_request(self, name: str) -> np.ndarray:
        """The one row that was measured of a request."""
        (sampler,) = self.bench.instruments.samplers
        (table,) = sampler.of_request(self.rows._slot_of[name])
        cells = Cells.unpack(table)
        assert cells.count[0] == 1
        return cells.last[0]


def expected(logits: torch.Tensor, tokens) -> np.ndarray:
    """What must be measured of these logits, were they not overwritten."""
    at = torch.as_tensor(tokens).view(-1, 1).long()
    return token_signals(logits).with_surprisal(logits.gather(-1, at).squeeze(-1)).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("runner", EVERY)
def test_the_models_own_distribution_is_measured(runner, dtype) -> None:
    """As it was before the sampler overwrote it, with the token that the sampler chose."""
    made = Seated(runner()).fit()
    logits = logits_of(3, dtype)
    plain, kept = runner(), logits.clone()
    tokens = Seated(plain).sample(logits.clone()).sampled_token_ids
    made.observe(batch_of("abc"))
    assert torch.equal(made.sample(logits).sampled_token_ids, tokens)
    want = expected(kept, tokens)
    for row, name in enumerate("abc"):
        np.testing.assert_allclose(made.of_request(name), want[row], rtol=1e-6)
    assert made.guard.errors == {}


@pytest.mark.parametrize("runner", EVERY)
def test_a_grammars_mask_is_part_of_the_distribution(runner) -> None:
    """The mask is put on before the sampler is called, and V2 does so within `sample`."""
    made = Seated(runner()).fit()
    logits, mask = logits_of(2), torch.zeros(2, 50, dtype=torch.bool)
    mask[1, 3:] = True
    made.observe(batch_of("ab"))
    tokens = made.sample(logits.clone(), grammar=mask).sampled_token_ids
    want = expected(logits.masked_fill(mask, -torch.inf), tokens)
    np.testing.assert_allclose(made.of_request("a"), want[0], rtol=1e-6)
    if runner is not RunnerV1:  # V1's fake chooses the least likely token: a forbidden one
        np.testing.assert_allclose(made.of_request("b"), want[1], rtol=1e-6)
        assert made.of_request("b")[0] <= np.log(3)


@pytest.mark.parametrize("runner", V2)
def test_a_filter_in_place_leaves_a_greedy_token_its_probability(runner) -> None:
    """V2 filters greedy rows in place: everything else was read before."""
    made = Seated(runner()).fit()
    made.runner.sampler.filters_in_place = True
    logits = logits_of(2)
    made.observe(batch_of("ab"))
    tokens = made.sample(logits).sampled_token_ids
    np.testing.assert_allclose(made.of_request("b"), expected(logits, tokens)[1], rtol=1e-6)


@pytest.mark.parametrize("runner", EVERY)
def test_only_the_sampling_of_a_real_step_is_listened_to(runner) -> None:
    """Dummy runs of the sampler, and a second sampling of one step, count nothing."""
    made = Seated(runner()).fit()
    made.sample(logits_of(2))  # the tap has observed no step yet
    made.observe(batch_of("ab"))
    made.runner._dummy_sampler_run(logits_of(2))
    assert made.totals().count[0] == 0
    made.sample(logits_of(2))
    made.sample(logits_of(2))
    made.runner._dummy_sampler_run(logits_of(2))
    assert made.totals().count[0] == 2


@pytest.mark.parametrize("runner", V2)
def test_logits_of_prompts_pass_by(runner) -> None:
    """Prompt log-probabilities call `compute_logits` too, before and after `sample`."""
    made = Seated(runner()).fit()
    made.observe(batch_of("ab"))
    made.runner.prompt_logprobs(logits_of(9))
    made.sample(logits_of(2))
    made.runner.prompt_logprobs(logits_of(2))
    assert made.totals().count[0] == 2


@pytest.mark.parametrize("runner", V2)
def test_the_sampler_stays_the_engines_own(runner) -> None:
    """Same object, class by name and by inheritance, and state: vLLM reads all of them."""
    plain = runner().sampler
    made = Seated(runner()).fit()
    sampler = made.runner.sampler
    assert isinstance(sampler, type(plain))
    assert type(sampler).__name__ == type(plain).__name__
    assert sampler.sampling_states.temperature == "of the engine's own"


@pytest.mark.parametrize("runner", EVERY)
def test_what_the_sampler_raises_is_its_own(runner) -> None:
    """Nothing is counted as ours, and the next steps are measured."""
    made = Seated(runner())

    def failing(sampler, logits, *_: object, **__: object) -> None:
        raise ValueError("the sampler's own")

    kind = type(made.runner.sampler)
    made.runner.sampler.__class__ = type("Failing", (kind,), {"__call__": failing})
    made.fit()
    for _ in range(2 * NUM_LOANS):
        made.observe(batch_of("ab"))
        with pytest.raises(ValueError, match="the sampler's own"):
            made.sample(logits_of(2))
    assert made.guard.errors == {}
    assert made.totals().count[0] == 0


@pytest.mark.parametrize("runner", EVERY)
def test_logits_of_another_kind_are_the_hosts_business(runner) -> None:
    """What the runner says of logits that are none is what it says untapped."""
    plain, made = Seated(runner()), Seated(runner()).fit()
    made.observe(batch_of("ab"))
    with pytest.raises(AttributeError) as untapped:
        plain.sample(None)
    with pytest.raises(AttributeError) as tapped:
        made.sample(None)
    assert str(tapped.value) == str(untapped.value)


@pytest.mark.parametrize("runner", EVERY)
def test_an_exception_of_ours_reaches_nobody(runner, monkeypatch) -> None:
    """The step returns what it returns; the site is disarmed at the limit."""
    made = Seated(runner()).fit()
    monkeypatch.setattr(Confidence, "read", lambda _sampler, _logits: 1 / 0)
    for _ in range(5):
        made.observe(batch_of("ab"))
        assert made.sample(logits_of(2)).sampled_token_ids.shape == (2, 1)
    assert made.guard.errors == {"confidence": 3}


@pytest.mark.parametrize("runner", EVERY)
def test_rows_that_do_not_fit_the_batch_are_left_alone_and_told_of(runner) -> None:
    """An engine that samples otherwise is not measured at all, and the status says so."""
    made = Seated(runner()).fit()
    made.observe(batch_of("ab"))
    made.sample(logits_of(3))
    made.observe(batch_of("ab"))
    made.sample(logits_of(2))
    assert made.totals().count[0] == 0
    assert "3 rows of logits for 2 tokens" in made.bench.instruments.absent["confidence"]
    assert made.guard.errors == {}


@pytest.mark.parametrize("runner", EVERY)
def test_orders_are_obeyed(runner) -> None:
    """Every so many steps, by the number of the step that was just observed; 0 for never."""
    made = Seated(runner()).fit()
    for every, counted in ((3, 2), (0, 0)):
        before = made.totals().count[0]
        made.orders, made.step = Orders(confidence_every=every), -1
        for _ in range(4):  # steps 0 to 3
            made.observe(batch_of("a"))
            made.sample(logits_of(1))
        assert made.totals().count[0] - before == counted


def test_rows_of_accepted_drafts_are_counted() -> None:
    """V1 has a row for each draft; the values are those of the accepted ones."""
    speculative = SimpleNamespace(num_speculative_tokens=2)
    made = Seated(RunnerV1(), speculative=speculative).fit()
    logits = logits_of(4)
    made.runner.speculated = torch.tensor([[5, 6, -1], [7, -1, -1]], dtype=torch.int32)
    step = made.observe(batch_of("ab", drafts=(2, 0)))
    step.accepted = np.array([1, 0])
    made.runner._sample(logits, SimpleNamespace(num_draft_tokens=[2, 0]))
    want = expected(logits[[0, 1, 3]], [5, 6, 7])
    np.testing.assert_allclose(made.of_request("b"), want[2], rtol=1e-6)
    assert made.totals().count[0] == 3
    np.testing.assert_allclose(made.totals().sums[0, :, 0], want.sum(0), rtol=1e-6)


@pytest.mark.parametrize("runner", EVERY)
@pytest.mark.parametrize(
    "source", [Source("engine", pp=1, tp=1), Source("engine", pp=0)], ids=["tp", "pp"]
)
def test_a_rank_without_logits_of_its_own_to_tell_is_silent(runner, source) -> None:
    """Of two stages the last one measures, and of a tensor-parallel group the first rank."""
    made = Seated(runner(), source, pipeline_parallel_size=2).fit()
    assert made.bench.instruments.samplers == []
    assert made.bench.instruments.absent == {}
    last = Seated(runner(), Source("engine", pp=1), pipeline_parallel_size=2).fit()
    assert len(last.bench.instruments.samplers) == 1


@pytest.mark.parametrize("runner", [RunnerV2Of32, RunnerV2Of33])
def test_batch_sharded_sampling_is_refused(runner) -> None:
    """A rank then has the logits of some requests only; the rest of the tap goes on."""
    made = Seated(runner())
    made.runner.batch_sharder = object()
    with pytest.raises(TapRefused, match="--enable-batch-sharded-sampling"):
        confidence.fit(made.bench)
    made.fit()
    assert list(made.bench.instruments.absent) == ["confidence"]


@pytest.mark.parametrize("runner", EVERY)
def test_a_runner_without_a_sampler_to_listen_to_is_refused(runner) -> None:
    """Before anything is wrapped, so that the rest of the tap goes on."""
    made = Seated(runner())
    if runner is RunnerV1:
        made.runner._sample = None
    else:
        made.runner.sampler = None
    with pytest.raises(TapRefused, match=f"{runner.__name__} samples in a way"):
        confidence.fit(made.bench)
    assert made.bench.seats == made.bench.instruments.samplers == []
