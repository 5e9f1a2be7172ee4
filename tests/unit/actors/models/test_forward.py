"""The packed forward against one plain forward a row: log-probs, entropies and gradients, however the rows are cut."""

import dataclasses

import numpy as np
import pytest
import torch

from actors.engines.probe import Mismatch, mismatch, worth_recording
from actors.models.forward import CHUNK, Barred, _LogProbs, score_tokens, to_tensors, token_logprobs
from actors.models.packing import fill, lay_out, micro_batches, plant
from actors.models.reference import ReferenceScorer
from learners.engines.models import load_critic, load_policy
from learners.engines.settings import ModelSettings
from learners.methods.method import TokenColumn, assemble
from tests.fixtures.columns import CPU, plain_logprobs, random_batch
from tests.fixtures.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(path):
    return load_policy(ModelSettings(str(path), dtype="float32"))


BATCH = random_batch(3, [5, 1, 9], [[4, 7, 1], [6, 0, 3], [2, 11]], shuffle=True)
ROWS = list(range(len(BATCH)))


def packed_logprobs(model, batch, budget, temperature=1.0, share=True):
    """(log-probs, entropies) on the T axis."""
    logprobs = torch.zeros(len(batch.token_ids), dtype=torch.float64)
    entropies = torch.zeros_like(logprobs)
    for micro in micro_batches(batch, ROWS, budget, share_prompts=share):
        lp, entropy = token_logprobs(model, to_tensors(micro, CPU), temperature)
        slots = torch.from_numpy(micro.slots)
        logprobs = logprobs.index_add(0, slots, lp.double())
        entropies = entropies.index_add(0, slots, entropy.double())
    return logprobs, entropies


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("budget", [1, 20, 1000], ids=["a row each", "some trees", "one row of trees"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@torch.no_grad()
def test_packed_logprobs_and_entropies_are_those_of_each_row_alone(model, budget, temperature):
    lp, entropy = packed_logprobs(model, BATCH, budget, temperature)
    plain_lp, plain_entropy = plain_logprobs(model, BATCH, temperature)
    assert (lp - plain_lp).abs().max() < 1e-5
    assert (entropy - plain_entropy).abs().max() < 1e-5


def test_one_row_holds_several_trees_with_shared_prompts():
    (one,) = fill(plant(BATCH, ROWS, 1000), 1000)
    micro = lay_out(BATCH, one)
    assert micro.trees.max() == 2 and micro.segments.max() == 3
    assert len(micro.token_ids) == 5 + 1 + 9 + 34  # each prompt once, each response token once


@torch.no_grad()
def test_the_trees_of_a_row_are_attended_one_at_a_time(model):
    """Their lengths reach every layer: a mask that let trees see each other then changes nothing, whole it would."""
    (one,) = fill(plant(BATCH, ROWS, 1000), 1000)
    packed = to_tensors(lay_out(BATCH, one), CPU)
    assert packed.tree_lengths == tuple(tree.cost for tree in one)
    trees = torch.repeat_interleave(torch.arange(3), torch.tensor(packed.tree_lengths))
    leaky = packed.attention_mask | (trees[:, None] != trees[None, :])
    lp, _ = token_logprobs(model, packed)
    same, _ = token_logprobs(model, dataclasses.replace(packed, attention_mask=leaky))
    assert torch.equal(lp, same)
    whole, _ = token_logprobs(model, dataclasses.replace(packed, tree_lengths=()))
    assert (lp - whole).abs().max() < 1e-5
    wrong, _ = token_logprobs(model, dataclasses.replace(packed, attention_mask=leaky, tree_lengths=()))
    assert (lp - wrong).abs().max() > 1e-3


def test_packed_gradients_are_those_of_each_row_alone_entropy_included(model):
    weights = torch.linspace(-1.0, 1.0, len(BATCH.token_ids), dtype=torch.float64)

    def loss_of(pair):
        return (pair[0] * weights).sum() - 0.3 * (pair[1] * weights.flip(0)).sum()

    expected = gradients(model, loss_of(plain_logprobs(model, BATCH, 0.8)))
    found = gradients(model, loss_of(packed_logprobs(model, BATCH, 1000, 0.8)))
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("budget", "ranks"), [(1, 1), (25, 1), (1000, 2), (12, 3)])
def test_the_gradient_summed_over_any_cut_and_ranks_is_the_uncut_one(model, budget, ranks):
    weights = torch.linspace(-1.0, 1.0, len(BATCH.token_ids))

    def gradient(budget, ranks):
        model.zero_grad()
        for rank in range(ranks):
            for micro in micro_batches(BATCH, ROWS, budget, rank=rank, ranks=ranks):
                if micro is not None:
                    lp, entropy = token_logprobs(model, to_tensors(micro, CPU))
                    (weights[torch.from_numpy(micro.slots)] * (lp + 0.1 * entropy)).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole = gradient(1000, 1)
    assert (gradient(budget, ranks) - whole).abs().max() < 1e-5 * max(1.0, float(whole.abs().max()))


@pytest.mark.parametrize("n", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 22])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_hand_written_backward_is_autograds_across_chunk_boundaries(n, temperature):
    generator = torch.Generator().manual_seed(n)
    logits = 3.0 * torch.randn(n, 37, generator=generator)
    targets = torch.randint(0, 37, (n,), generator=generator)
    g_lp, g_h = torch.randn(n, generator=generator), torch.randn(n, generator=generator)

    reference = logits.double().requires_grad_()
    table = torch.log_softmax(reference / temperature, dim=-1)
    lp, entropy = table.gather(1, targets[:, None])[:, 0], -(table.exp() * table).sum(-1)
    (lp * g_lp + entropy * g_h).sum().backward()

    mine = logits.clone().requires_grad_()
    found_lp, found_entropy = _LogProbs.apply(mine, targets, 1.0 / temperature)
    (found_lp * g_lp + found_entropy * g_h).sum().backward()
    assert (found_lp - lp).abs().max() < 1e-5 and (found_entropy - entropy).abs().max() < 1e-5
    assert (mine.grad - reference.grad).abs().max() < 1e-5

    only_lp = logits.clone().requires_grad_()
    _LogProbs.apply(only_lp, targets, 1.0 / temperature)[0].backward(g_lp)
    table_grad = torch.autograd.functional.vjp(
        lambda z: torch.log_softmax(z / temperature, -1).gather(1, targets[:, None])[:, 0],
        logits.double(),
        g_lp.double(),
    )[1]
    assert (only_lp.grad - table_grad).abs().max() < 1e-5


@pytest.mark.parametrize("n", [1, CHUNK + 1, 2 * CHUNK + 22])
def test_barred_tokens_have_no_part_in_log_probs_entropies_and_gradients(n):
    generator = torch.Generator().manual_seed(n)
    logits = 3.0 * torch.randn(n, 37, generator=generator)
    early = torch.rand(n, generator=generator) < 0.5
    targets = torch.randint(3, 37, (n,), generator=generator)
    g_lp, g_h = torch.randn(n, generator=generator), torch.randn(n, generator=generator)

    reference = logits.double().requires_grad_()
    kept = torch.ones(n, 37, dtype=torch.bool)
    kept[:, [0, 2]] = ~early[:, None]
    p = torch.where(kept, (reference / 0.7).exp(), 0.0)
    p = p / p.sum(-1, keepdim=True)
    lp = p.gather(1, targets[:, None])[:, 0].log()
    entropy = -torch.where(kept, p * torch.where(kept, p, 1.0).log(), 0.0).sum(-1)
    (lp * g_lp + entropy * g_h).sum().backward()

    mine = logits.clone().requires_grad_()
    found_lp, found_entropy = _LogProbs.apply(mine, targets, 1.0 / 0.7, ([0, 2], early))
    (found_lp * g_lp + found_entropy * g_h).sum().backward()
    assert (found_lp - lp).abs().max() < 1e-5 and (found_entropy - entropy).abs().max() < 1e-5
    assert (mine.grad - reference.grad).abs().max() < 1e-5
    assert (mine.grad[early][:, [0, 2]] == 0.0).all()


def test_a_token_is_early_by_its_place_in_its_own_response(model):
    barred = Barred((4, 5, 6), 2)
    with torch.no_grad():
        plain = model_table(model, BATCH, 0.8)
        for micro in micro_batches(BATCH, ROWS, 1000):
            lp, _ = token_logprobs(model, to_tensors(micro, CPU), 0.8, barred)
            for at, slot in enumerate(micro.slots):
                row = int(np.searchsorted(BATCH.offsets, slot, side="right")) - 1
                table = plain[slot].clone()
                if slot - BATCH.offsets[row] < 2:
                    table[[4, 5, 6]] = -torch.inf
                wanted = torch.log_softmax(table, -1)[int(BATCH.token_ids[slot])]
                if torch.isfinite(wanted):
                    assert lp[at].item() == pytest.approx(wanted.item(), abs=1e-5)
                else:
                    assert lp[at] < -1e20, "a barred token was never drawn"


def model_table(model, batch, temperature):
    """[T, V] scaled logits that decide each response token, each row alone."""
    rows = []
    for row in range(len(batch)):
        prompt, response = batch.prompt_of(row), batch.response_of(row)
        ids = torch.tensor(np.concatenate([prompt, response]).astype(np.int64))[None]
        rows.append(model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double() / temperature)
    return torch.cat(rows)


def test_two_even_logits_have_logprob_minus_log_two_entropy_log_two_and_gradient_half():
    logits = torch.tensor([[5.0, 5.0]], requires_grad=True)
    lp, entropy = _LogProbs.apply(logits, torch.tensor([1]), 1.0)
    lp.sum().backward()
    assert lp.item() == pytest.approx(-np.log(2)) and entropy.item() == pytest.approx(np.log(2))
    assert logits.grad.tolist() == [[-0.5, 0.5]]


def test_bfloat16_logits_are_reduced_in_float32_and_huge_ones_stay_finite():
    logits = (8.0 * torch.randn(70, 101, generator=torch.Generator().manual_seed(0))).bfloat16()
    logits[0, 0], logits[1, 1] = 3e4, -3e4
    targets = torch.arange(70)
    lp, entropy = _LogProbs.apply(logits, targets, 1.25)
    table = torch.log_softmax(logits.double() * 1.25, dim=-1)
    assert lp.dtype == entropy.dtype == torch.float32
    assert torch.allclose(lp.double(), table.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=2e-5)
    leaf = logits.clone().requires_grad_()
    _LogProbs.apply(leaf, targets, 1.25)[0].sum().backward()
    assert leaf.grad.dtype == torch.bfloat16 and torch.isfinite(leaf.grad).all()


def test_a_bfloat16_model_runs_packed_and_stays_near_float32(path, model):
    half = load_policy(ModelSettings(str(path), dtype="bfloat16"))
    lp, _ = packed_logprobs(half, BATCH, 1000)
    with torch.no_grad():
        exact, _ = plain_logprobs(model, BATCH)
        plain, _ = plain_logprobs(half, BATCH)
    # its error is that of a plain bfloat16 forward, not more
    assert (lp - exact).abs().mean() < 2.0 * (plain - exact).abs().mean() + 1e-3
    lp.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in half.parameters())


def test_a_row_of_only_empty_responses_has_no_logprobs_and_a_zero_gradient(model):
    batch = random_batch(0, [3], [[0, 0]])
    (micro,) = micro_batches(batch, [0, 1], 100)
    lp, entropy = token_logprobs(model, to_tensors(micro, CPU))
    assert lp.shape == entropy.shape == (0,)
    assert gradients(model, lp.sum()).abs().max() == 0.0


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_scored_shares_of_all_ranks_make_the_whole_column(model, ranks):
    shares = [
        TokenColumn(*score_tokens(model, BATCH, ROWS, max_tokens=25, temperature=0.9, device=CPU, rank=r, ranks=ranks))
        for r in range(ranks)
    ]
    with torch.no_grad():
        plain, _ = plain_logprobs(model, BATCH, 0.9)
    assert np.abs(assemble(shares, len(BATCH.token_ids)) - plain.numpy()).max() < 1e-5


def test_the_reference_scores_like_the_policy_it_came_from_and_its_digest_stays(path, model):
    reference = ReferenceScorer(
        str(path), dtype="float32", attention="sdpa", temperature=0.9, max_tokens=30, device="cpu"
    )
    before = reference.digest()
    column = TokenColumn(*reference.logprobs(BATCH))
    with torch.no_grad():
        plain, _ = plain_logprobs(model, BATCH, 0.9)
    whole = assemble([column], len(BATCH.token_ids))
    assert np.abs(whole - plain.numpy()).max() < 1e-5
    assert reference.digest() == before
    next(reference._model.parameters()).data[0, 0] += 1.0
    assert reference.digest() != before


@pytest.mark.parametrize("load", [load_policy, load_critic])
def test_an_attention_that_would_ignore_the_mask_is_refused(path, load):
    with pytest.raises(ValueError, match="set it to sdpa"):
        load(ModelSettings(str(path), dtype="float32", attention="eager"))


def test_mismatch_is_the_mean_gap_in_nats_and_infinite_where_a_token_lacks():
    engine = np.array([-1.0, -2.0, -3.0], np.float32)
    first = TokenColumn(np.array([2, 0]), np.array([-3.5, -1.25], np.float32))
    second = TokenColumn(np.array([1]), np.array([-2.0], np.float32))
    found = mismatch(engine, [first, second])
    assert found.mean == pytest.approx(0.25)
    assert found.doubt == pytest.approx(1 - (np.exp(-1.25) + np.exp(-2.0) + np.exp(-3.5)) / 3)
    assert mismatch(engine, [first]).mean == float("inf")
    assert mismatch(np.array([np.nan, -2.0, -3.0]), [first, second]).mean == float("inf")


def test_a_bound_is_carried_to_tokens_in_more_doubt_and_never_lowered():
    fresh = Mismatch(mean=0.01, doubt=0.1)
    assert fresh.bound(2.0, 0.1, 1e-4) == pytest.approx(0.02)
    assert fresh.bound(2.0, 0.3, 1e-4) == pytest.approx(0.06), "three times the doubt shows three times the rounding"
    assert fresh.bound(2.0, 0.01, 1e-4) == pytest.approx(0.02)
    assert Mismatch(0.0, 0.5).bound(2.0, 0.5, 1e-4) == 1e-4


def test_a_probe_takes_rows_until_their_tokens_are_doubtful_enough_for_a_mean():
    batch = random_batch(0, [3], [[100] * 20])
    even = dataclasses.replace(batch, logprobs=np.full(2000, np.log(0.9), np.float32))
    assert worth_recording(even, 2) == [0, 1, 2, 3], "ten in doubt a row: the fourth row passes 32"
    assert worth_recording(even, 8) == list(range(8)) and worth_recording(even, 50) == list(range(20))
    sure = dataclasses.replace(batch, logprobs=np.zeros(2000, np.float32))
    assert worth_recording(sure, 2) == list(range(11)), "no doubt at all: given up at 1,024 tokens"
