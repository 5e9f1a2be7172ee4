"""The contract of learners.engines.interface.TrainEngine, for the torch twin and DeepSpeed's ZeRO 0-3, on one rank and
on two.

One job of rank processes runs every case (importing the engines costs more than all of them) and hands back numbers;
the expectations stand here, worked out by hand. `train_engine_cases` holds the models and what is done with them.
"""

from __future__ import annotations

import math

import pytest

from tests.contracts.learners.train_engine_cases import CASES
from tests.fixtures.ranks import run_ranks

STAGES = ("zero-0", "zero-1", "zero-2", "zero-3")
OFFLOADED = ("zero-1-offload", "zero-2-offload", "zero-3-offload")
OFFLOADED_CASES = ("float32_sum", "non_finite_bfloat16", "twin", "resume")
ONE = [(kind, 1) for kind in ("torch", *STAGES)]
TWO = [(kind, 2) for kind in STAGES]
OFFLOAD = [(kind, 2) for kind in OFFLOADED]

pytestmark = pytest.mark.timeout(600)  # the first test waits for both jobs


@pytest.fixture(scope="module")
def extensions(tmp_path_factory):
    """An empty folder, where what is compiled on the fly would go."""
    folder = tmp_path_factory.mktemp("extensions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def results(tmp_path_factory, extensions):
    """(kind, ranks, case) -> the numbers of each rank."""
    jobs = {
        1: {kind: list(CASES) for kind, _ in ONE if kind != "torch"}
        | {"torch": [c for c in CASES if c != "construction"]},
        2: {kind: list(CASES) for kind in STAGES} | {kind: list(OFFLOADED_CASES) for kind in OFFLOADED},
    }
    found = {}
    for ranks, cases in jobs.items():
        folder = tmp_path_factory.mktemp(f"ranks-{ranks}")
        payload = {"folder": str(folder / "cases"), "cases": cases}
        job = "tests.contracts.learners.train_engine_cases:run"
        per_rank = run_ranks(job, ranks, payload, folder=folder, timeout_s=240)
        for kind, names in cases.items():
            for name in names:
                found[kind, ranks, name] = [mine[kind][name] for mine in per_rank]
    return found


def each(case: str, kinds_and_ranks: list[tuple[str, int]] = ONE + TWO):
    """Parametrise over engine and ranks, with `case` as the test's subject."""
    ids = [f"{kind}-{ranks}-ranks" for kind, ranks in kinds_and_ranks]
    return pytest.mark.parametrize("at", [(k, r, case) for k, r in kinds_and_ranks], ids=ids)


def test_no_engine_compiles_anything_when_it_starts(results, extensions):
    """A build takes minutes, and one that is killed leaves a lock on which every later start waits for ever."""
    assert list(extensions.iterdir()) == []


@each("sum")
def test_gradient_is_the_plain_sum_over_micro_batches_and_ranks_then_clipped_by_its_global_norm(results, at):
    for mine in results[at]:
        assert mine["applied"]
        assert mine["grad_norm"] == pytest.approx(5.0, rel=1e-6)  # of (3, 4); an average over ranks would give 2.5
        # Clipped to norm 1: (0.6, 0.8). With eps 1 the first AdamW step is g / (|g| + 1).
        assert mine["weights"]["body.weight"] == pytest.approx([1 - 0.6 / 1.6, 1 - 0.8 / 1.8], abs=1e-6)
        assert mine["weights"]["value_head.weight"] == [1.0, 1.0]


@each("unclipped")
def test_max_grad_norm_zero_does_not_clip(results, at):
    for mine in results[at]:
        assert mine["weights"]["body.weight"] == pytest.approx([1 - 3 / 4, 1 - 4 / 5], abs=1e-6)


@each("float32_sum", ONE + TWO + OFFLOAD)
def test_bfloat16_gradients_are_summed_in_float32_over_micro_batches_and_ranks(results, at):
    for mine in results[at]:
        assert mine["grad_norm"] == 1 / 512  # 1 + 1/512 - 1; a bfloat16 sum loses the 1/512 and gives 0


@each("groups")
def test_decay_spares_one_dimensional_parameters_and_the_head_has_its_own_rate(results, at):
    for mine in results[at]:
        w = mine["weights"]  # AdamW's first step is lr times the gradient's sign; decay takes lr * 0.5 of the weight 1
        assert w["body.weight"] == pytest.approx([1 - 0.05 - 0.1, 1 - 0.05 + 0.1], abs=1e-6)
        assert w["offset.bias"] == pytest.approx([1 - 0.1, 1 + 0.1], abs=1e-6)
        assert w["value_head.weight"] == pytest.approx([1 - 0.005 - 0.01, 1 - 0.005 + 0.01], abs=1e-6)


@each("schedule")
def test_rates_freeze_warm_up_and_decay_as_the_schedule_says(results, at):
    rates = [0.0, 0.05, 0.1, 0.1, 0.0875, 0.075, 0.0625, 0.05]  # frozen; 1/2, 2/2; linear from 0.1 to 0.05 by step 7
    for mine in results[at]:
        assert [s["lr"] for s in mine["steps"]] == pytest.approx(rates)
        expected = 1.0
        for step, rate in zip(mine["steps"], rates, strict=True):
            expected -= rate  # a constant gradient moves AdamW by its rate
            assert step["weight"] == pytest.approx(expected, abs=1e-5)
        assert mine["steps"][0]["weight"] == 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each("non_finite", ONE + TWO)
def test_a_non_finite_loss_or_gradient_on_one_rank_skips_the_step_on_all_and_leaves_no_trace(results, at, dtype):
    kind, ranks, case = at
    check_no_trace(results[kind, ranks, f"{case}_{dtype}"])


@each("non_finite_bfloat16", OFFLOAD)
def test_a_skipped_step_leaves_no_trace_in_an_offloaded_optimizer(results, at):
    check_no_trace(results[at])


def check_no_trace(per_rank: list[dict]) -> None:
    for mine in per_rank:
        assert mine["bad_loss_is_finite"]  # so the second bad step is found by its gradient alone
        for bad in ("nan_loss", "infinite_gradient"):
            assert not mine[bad]["applied"]
            assert mine[bad]["lr"] == 0.05  # the schedule did not move: still the second of four warm-up steps
            assert not math.isfinite(mine[bad]["grad_norm"])
        assert mine["untouched"]
        assert mine["with_bad"] == mine["without_bad"]
        assert mine["with_bad"]["applied"]


@each("unused")
def test_a_parameter_without_a_gradient_steps_on_zero_and_not_on_the_last_step_s_gradient(results, at):
    # Adam, betas 0.9 and 0.95, gradients g then 0: m = 0.09 g / 0.19, v = 0.0475 g^2 / 0.0975.
    second = 0.1 * (0.09 / 0.19) / math.sqrt(0.0475 / 0.0975)
    for mine in results[at]:
        assert mine["grad_norm"] == pytest.approx(1.0)
        assert mine["weights"]["value_head.weight"] == pytest.approx([1 - 0.1 - second] * 2, abs=1e-6)


@each("twin", ONE + TWO + OFFLOAD)
def test_weights_equal_the_twin_s_however_the_batch_is_cut(results, at):
    for mine in results[at]:
        assert mine["moved"] > 1e-3
        assert max(mine["difference"].values()) < 1e-6
        assert max(mine["norm_difference"].values()) < 1e-5


@each("parameters")
def test_full_parameters_are_complete_in_order_bit_right_and_within_the_bucket(results, at):
    for mine in results[at]:
        assert mine["names"] == mine["expected_names"]
        assert "lm_head.weight" not in mine["names"]  # tied to the embedding, which stands once
        assert mine["names"][0] == "model.embed_tokens.weight"
        assert mine["bit_equal"]
        # Bytes in order: embedding 24576; each layer q 32768, k and v 16384, o 32768, three of 40960, two norms of 256;
        # last norm 256. At most 70,000 together: embedding + q, k + v + o, gate, up, down + norms, q + k + v, o, ...
        assert mine["sizes"] == [2, 3, 1, 1, 3, 3, 1, 1, 1, 4]


@each("resume", ONE + TWO + OFFLOAD)
def test_a_loaded_engine_continues_bit_for_bit(results, at):
    kind, ranks, _ = at
    shares = ranks if kind.startswith(("zero-1", "zero-2", "zero-3")) else 1  # else every rank holds the same
    for mine in results[at]:
        for dtype in ("float32", "bfloat16"):
            got = mine[dtype]
            assert got["moved"]
            assert got["loaded"] and got["resumed"] and got["reloaded"]
            assert got["files"] == [*(f"rank-{r}.safetensors" for r in range(shares)), "state.json"]


@each("mismatch")
def test_load_names_what_differs_and_touches_nothing(results, at):
    kind, ranks, _ = at
    stage = 0 if kind == "torch" else int(kind[-1])
    for mine in results[at]:
        assert "has model '" in mine["model"] and "resume with the model" in mine["model"]
        assert "has dtype 'float32' but this engine has 'bfloat16'" in mine["dtype"]
        assert f"has world_size {ranks + 7} but this engine has {ranks}; it does not say what" in mine["world_size"]
        assert f"has zero_stage {stage + 4} but this engine has {stage}; it does not say what" in mine["zero_stage"]
        assert "state.json is missing" in mine["nothing"]
        assert mine["untouched"]
    torn = [mine["torn"] for mine in results[at]]
    assert "take an earlier checkpoint" in torn[-1]
    if ranks == 2 and stage > 0:
        assert "another rank cannot load its part" in torn[0]


@each("construction", [(kind, ranks) for kind in STAGES for ranks in (1, 2)])
def test_a_model_read_inside_the_construction_context_is_sharded_in_stage_3_and_trains_the_same(results, at):
    for mine in results[at]:
        assert mine["sharded"] == (20 if at[0] == "zero-3" else 0)
        assert mine["moved"]
        assert mine["same_start"]
        assert mine["same_end"]
