"""Numbers that are not finite: a step is skipped with the optimiser untouched, saved, and can be looked at."""

from __future__ import annotations

from pathlib import Path

from cluster.commands.replay import replay_lines
from tests.chaos.harness import CHANGES, STEPS, Fault, assert_balanced, report, run_with
from tests.integration.runs import recipe, rows


def test_a_gradient_that_is_not_finite_costs_its_step_and_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    fault = Fault(
        "gradient not finite", "learner-0", "learners.engines.torch_engine:TorchEngine.backward", call=3, do="nan"
    )
    ended = run_with([fault], recipe(tmp_path, tiny_model, **CHANGES), tmp_path / "run")
    assert ended.code == 0, ended.output
    (told,) = ended.after(fault.id, "nonfinite")
    step = told["step"]
    assert f"raylign replay {ended.run_dir} {step}" in told["text"]
    steps = {row["step"]: row for row in rows(ended.run_dir)}
    assert sorted(steps) == [*range(STEPS + 1)]
    assert steps[step].get("policy/grad_norm") is None
    assert steps[6]["kl/ref"] > 0 and steps[6]["reward/mean"] > steps[1]["reward/mean"], "it went on learning"
    assert_balanced(ended.run_dir, trained=4 * STEPS)
    said = replay_lines(str(ended.run_dir), step)
    assert said[-1] == "  the step is finite with these weights", "it was the machine, not the data"
    report(ended, fault.id, detected="nonfinite", recovered="checkpoint")
