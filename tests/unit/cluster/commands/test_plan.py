"""A plan from a run: times that were put in are found again, and the forecast is the step that they make."""

import numpy as np
import pytest

from cluster.commands.plan import gpu_splits, plan
from cluster.errors import UserError
from cluster.run.directory import RunDirectory
from cluster.run.records.metrics import MetricsWriter, read_metrics
from cluster.run.records.samples import read_samples, write_samples
from cluster.simulate.fit import groups_of, measure
from cluster.simulate.run import simulate
from tests.fixtures.configs import GRPO, config
from tests.fixtures.fake_run import make_fake_run

BASE, EACH, FIXED, TOKEN, PUBLISH = 0.02, 0.001, 0.5, 0.002, 0.7
"""Seconds: of a decode step, of a token in it; of an update, of a token in it; of a publish."""
SAMPLES, BATCH = 4, 8


def the_config():
    sizes = [f"rollout.prompts_per_step={BATCH}", f"rollout.sampling.samples_per_prompt={SAMPLES}"]
    return config(GRPO, *sizes, "rollout.max_num_seqs=64")


def a_run(path, steps: int = 20) -> tuple[RunDirectory, list[int]]:
    """A run of one worker whose times are those above, to the last digit, and the lengths that its samples had."""
    run = RunDirectory.create(path)
    run.write_config(the_config())
    rng = np.random.default_rng(0)
    writer, every = MetricsWriter(run), []
    for step in range(1, steps + 1):
        lengths = rng.integers(5, 60, BATCH * SAMPLES)
        every += lengths.tolist()
        tokens, longest = int(lengths.sum()), int(lengths.max())
        writer.write(
            step,
            {
                "response/length_mean": tokens / len(lengths),
                "response/length_max": longest,
                "role/rollout/generate_s": BASE * longest + EACH * tokens,
                "role/learner/update_policy_s": FIXED + TOKEN * tokens,
                "role/scorer/score_s": 0.0,
                "sync/seconds": PUBLISH,
                "time/step_s": BASE * longest + (EACH + TOKEN) * tokens + FIXED + PUBLISH,
            },
        )
    writer.close()
    return run, every


def test_the_times_of_a_run_are_found_again(tmp_path):
    run, lengths = a_run(tmp_path / "run")
    found = measure(run.read_config(), read_metrics(run.metrics_file), groups_of(lengths, SAMPLES))
    assert (found.step.base, found.step.each) == pytest.approx((BASE, EACH), rel=1e-6)
    assert (found.learn_fixed_s, found.learn_token_s) == pytest.approx((FIXED, TOKEN), rel=1e-6)
    assert (found.publish_s, found.sequences, found.batch) == (PUBLISH, 64, BATCH)
    assert {len(group) for group in found.lengths} == {SAMPLES}


def test_the_forecast_of_the_run_itself_is_its_own_step_and_more_workers_shorten_its_generating(tmp_path):
    run, lengths = a_run(tmp_path / "run")
    rows = read_metrics(run.metrics_file)
    found = measure(run.read_config(), rows, groups_of(lengths, SAMPLES))
    same = simulate(found.scenario(workers=1, ranks=1, max_staleness=0, settle=False))
    measured = float(np.mean([row["time/step_s"] for row in rows]))
    assert np.mean(same.step_s[1:]) == pytest.approx(measured, rel=0.05)
    four = simulate(found.scenario(workers=4, ranks=2, max_staleness=0, settle=False))
    tokens, longest = np.mean([sum(group) for group in found.lengths]) * BATCH, 57
    by_hand = BASE * longest + EACH * tokens / 4 + FIXED + TOKEN * tokens / 2 + PUBLISH
    assert np.mean(four.step_s[1:]) == pytest.approx(by_hand, rel=0.1)


def test_workers_that_came_while_the_run_went_on_share_the_tokens_of_their_own_steps(tmp_path):
    run, lengths = a_run(tmp_path / "run")
    rows = []
    for row in read_metrics(run.metrics_file):
        tokens, workers = row["response/length_mean"] * SAMPLES * BATCH, 1 + row["step"] // 8
        seconds = BASE * row["response/length_max"] + EACH * tokens / workers
        rows.append(row | {"rollout/workers": workers, "role/rollout/generate_s": seconds})
    found = measure(run.read_config(), rows, groups_of(lengths, SAMPLES))
    assert (found.step.base, found.step.each) == pytest.approx((BASE, EACH), rel=1e-6)


def test_gpus_divide_by_what_a_worker_and_a_rank_take():
    def of(tensor_parallel: int, gpus_per_rank: float = 1.0) -> dict:
        return {"rollout": {"tensor_parallel": tensor_parallel}, "learner": {"gpus_per_rank": gpus_per_rank}}

    assert gpu_splits(4, of(1)) == [(1, 3), (2, 2), (3, 1)]
    assert gpu_splits(8, of(2)) == [(1, 6), (2, 4), (3, 2)]
    with pytest.raises(UserError, match="a worker takes 4 and a rank 1 of the GPUs, got 4; give more"):
        gpu_splits(4, of(4))
    with pytest.raises(UserError, match=r"shares its GPU with a worker in this run \(learner.gpus_per_rank 0.5\)"):
        gpu_splits(4, of(1, 0.5))


def test_a_run_that_tells_too_little_is_refused(tmp_path):
    run, lengths = a_run(tmp_path / "run", steps=4)
    with pytest.raises(UserError, match=r"needs a run of at least 6 steps that generated samples, this one has 3"):
        measure(run.read_config(), read_metrics(run.metrics_file), groups_of(lengths, SAMPLES))
    with pytest.raises(UserError, match="the run kept no samples"):
        groups_of([], 4)


def test_the_command_prints_every_size_and_marks_the_shortest_step(tmp_path, capsys):
    run, _ = a_run(tmp_path / "run")
    kept = make_fake_run(tmp_path / "fake")
    write_samples(run.samples_file(1), read_samples(kept.samples_file(kept.sample_steps()[0])))
    given = {"workers": "1", "gpus": None, "nodes": None, "gpus_per_node": 8, "max_staleness": 2}
    plan(str(run.root), **given | {"workers": "1,2"})
    shown = capsys.readouterr().out
    assert shown.count("asynchronous │") == 2 and shown.count(" <") == 1
    assert "took turns on one machine" in shown
    plan(str(run.root), **given | {"gpus": 4})
    assert capsys.readouterr().out.count("one_step_off │") == 3
    plan(str(run.root), **given | {"nodes": 2, "gpus_per_node": 4})
    assert capsys.readouterr().out.count("one_step_off │") == 7
    for wrong, said in (
        ({"workers": "many"}, "--workers takes numbers with commas, got 'many'"),
        ({"workers": "2,0"}, "--workers takes numbers of at least 1, got 2,0"),
        ({"gpus": 4, "nodes": 2}, "--nodes and --gpus both say how many GPUs there are, got 2 and 4; give one"),
        ({"nodes": 1, "gpus_per_node": 1}, "a worker takes 1 and a rank 1 of the GPUs, got 1; give more"),
    ):
        with pytest.raises(UserError, match=said):
            plan(str(run.root), **given | wrong)


def test_a_step_whose_time_was_not_finite_is_named(tmp_path):
    run, lengths = a_run(tmp_path / "run")
    rows = read_metrics(run.metrics_file)
    rows[3] = rows[3] | {"sync/seconds": None}
    with pytest.raises(UserError, match=rf"step {rows[3]['step']:g} has no sync/seconds \(it was not finite\)"):
        measure(run.read_config(), rows, groups_of(lengths, SAMPLES))
