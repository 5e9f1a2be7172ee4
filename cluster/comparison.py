"""Models on a recipe's held-out rows: what `raylign eval` compares.

In: a Config and models (directories, runs, hub ids). Out: scores by name in the rows' order, the same rows for every
model: of responses by the recipe's rewards, of conversations by their likelihood, of pairs by a reward model. A judge
compares two models' responses in both orders. Left out: intervals and the table (commands/eval.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.data.stored import StoredRows
from actors.models.pretrained import resolve_model
from actors.response_mask import row_sums
from actors.types import PolicyVersion, SampleBatch
from cluster.config import Config, resolve
from cluster.config.placement import plan
from cluster.errors import UserError
from cluster.inputs.online import load_inputs, load_tokenizer, reward_specs
from cluster.inputs.stored import load_stored_inputs
from cluster.life.connection import Cluster
from cluster.roles.scorer import load_judge
from cluster.run.records.evaluation import followed
from cluster.training.parts.evaluation import HELDOUT_GROUP, heldout_prompts, judge_spec, scorer_spec
from cluster.training.parts.rollouts import start_pool
from cluster.workers import ScorerPool, get


@dataclass(frozen=True, slots=True)
class Answers:
    """One model on the held-out rows. scores: by name, float64 [rows], NaN without one. prompts, responses, data: text
    and columns, where the model answered."""

    scores: Mapping[str, np.ndarray]
    prompts: Sequence[str] = ()
    responses: Sequence[str] = ()
    data: Sequence[Mapping[str, Any]] = ()


def answers(config: Config, model: str) -> Answers:
    """The model's scores by what the recipe trains: rewards, likelihood, or the order of pairs."""
    kind = {"conversations": _likelihood, "pairs": _pairs, "prompts": _responses}
    return kind[config.row_kind](config, resolve_model(model))


def _responses(config: Config, path: Path) -> Answers:
    """One response per held-out prompt, scored by the recipe's rewards."""
    from cluster.config.placement import logical_cpus

    with Cluster(config.ray.address, logical_cpus(config)) as cluster:
        placement = plan(config, os.cpu_count() or 1, cluster.resources()[1])
        rollout = config.rollout
        pool = start_pool(config, placement, path)
        spec = scorer_spec(config, path, reward_specs(config), Path.cwd())
        scorers = ScorerPool(placement.role("scorer"), spec, rollout.timeout_s)
        tokenizer = load_tokenizer(config, path)
        prompts = heldout_prompts(load_inputs(config, tokenizer))
        try:
            pool.adopt(PolicyVersion(0, "from disk"))
            samples = pool.generate(prompts, resolve.evaluation_settings(config), 0)
            found = scorers.wait([scores for scores, _ in scorers.score(samples)])
            batch = SampleBatch.concat(get(list(samples.chunks), rollout.timeout_s, "fetching the responses"))
        finally:
            # Before Ray is left: a thread of the pool that called a worker afterwards would start a Ray of its own.
            pool.close()
            scorers.close()
    order = np.argsort(np.array(samples.groups))
    scores = {"reward": np.concatenate([part.values for part in found])[order]}
    for name in found[0].parts:
        scores[name] = np.concatenate([part.parts[name] for part in found])[order]
    texts = tokenizer.batch_decode([batch.response_of(row).tolist() for row in order], skip_special_tokens=True)
    rows = [prompts[int(batch.groups[batch.group_rows[row]]) - HELDOUT_GROUP] for row in order]
    return Answers(scores, [str(row.data["prompt"]) for row in rows], texts, [row.data for row in rows])


def _likelihood(config: Config, path: Path) -> Answers:
    """Mean log-prob a token of each held-out conversation's assistant turns; perplexity is its exponential."""
    from actors.data.batches import demonstration_batch
    from actors.models.reference import ReferenceScorer

    heldout = _heldout(config, path)
    batch = demonstration_batch([(row, row.id) for row in heldout.rows])
    scorer = ReferenceScorer(
        str(path),
        dtype=config.model.dtype,
        attention=config.model.attention,
        temperature=1.0,
        max_tokens=config.learner.micro_batch_tokens,
        device="cpu",
        trust_remote_code=config.model.trust_remote_code,
    )
    column = np.zeros(len(batch.token_ids), np.float32)
    slots, values = scorer.logprobs(batch)
    column[slots] = values
    sums, tokens = row_sums(column, batch).T
    return Answers({"logprob": sums / np.maximum(tokens, 1), "tokens": tokens})


def _heldout(config: Config, path: Path) -> StoredRows[Any]:
    heldout = load_stored_inputs(config, load_tokenizer(config, path)).heldout
    if heldout is None:
        raise UserError("there are no held-out rows to evaluate on; add data.heldout=200")
    return heldout


def _pairs(config: Config, path: Path) -> Answers:
    """Whether a reward model puts each held-out pair in its order, and by how much."""
    from actors.models.reward_model import RewardModel

    heldout = _heldout(config, path)
    model = RewardModel(path, max_length=config.model.max_length)
    chosen, rejected = (
        model.score_tokens([[*row.prompt_tokens, *row.responses[side]] for row in heldout.rows]) for side in (0, 1)
    )
    return Answers({"accuracy": np.array(followed(chosen - rejected)), "margin": chosen - rejected})


def verdicts(config: Config, judge: str, first: Answers, second: Answers) -> np.ndarray:
    """float64 [rows]: 1 where the second model's response wins in both orders, 0 where it loses, 0.5 a tie. judge: a
    model, or `module:function` as reward.judges takes it."""
    from actors.rewards.judge import swapped
    from cluster.config.sections.reward import Judge

    settings = Judge(function=judge) if ":" in judge and not judge.startswith("package:") else Judge(path=judge)
    spec = scorer_spec(config, Path("."), (), Path.cwd())
    judging = load_judge(judge_spec("judge", settings), spec)
    try:
        return swapped(judging, first.prompts, second.responses, first.responses, first.data)
    finally:
        judging.close()
