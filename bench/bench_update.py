"""Update tokens/s: Raylign's packed, prompt-sharing update against a plain padded transformers loop.

Same model (SmolLM2-135M), dtype (bfloat16 weights, float32 master), loss (GRPO with k3 KL), samples (8 prompts x 8
samples of 22 tokens) and optimiser (AdamW). The peer forwards each prompt with each sample, padded, with logits of
every position, as a textbook loop does; its micro-batch is the fastest of those tried (8 rows). Tokens are response
tokens; both sides run with the memory settings of Raylign's workers.
"""

from __future__ import annotations

import numpy as np
import torch

from actors.types import FinishReason, Sample, SampleBatch, ScoreBatch
from bench.tools.common import THREADS, alternate, as_a_worker, model_path, prompts, table
from learners.engines.deepspeed_engine import DeepSpeedEngine
from learners.engines.models import load_policy
from learners.engines.process_group import init_process_group
from learners.engines.settings import ModelSettings, OptimizerSettings, ZeroSettings
from learners.engines.torch_engine import TorchEngine
from learners.methods.method import Method, StepInputs, UpdateSettings
from learners.methods.presets import PRESETS
from learners.policy import PolicyLearner

GROUPS, SAMPLES, LENGTH = 8, 8, 22


def main() -> None:
    as_a_worker()
    torch.set_num_threads(THREADS)
    model = model_path()
    init_process_group(0, 1, "127.0.0.1", 29531, "gloo", 60)
    batch = samples(model)
    ours = raylign(model, batch)
    theirs = plain_loop(model, batch)
    mine, peer = alternate([ours, theirs], rounds=5)
    tokens = len(batch.token_ids)
    table(
        "Update, SmolLM2-135M bfloat16, 8 x 8 samples, median of 5",
        ["", "s", "response tokens/s", "ratio"],
        [["plain padded loop", peer, tokens / peer, 1.0], ["Raylign", mine, tokens / mine, peer / mine]],
    )


def samples(model) -> SampleBatch:
    rng = np.random.default_rng(0)
    rows = []
    for prompt in prompts(GROUPS, model):
        for index in range(SAMPLES):
            ids = rng.integers(100, 40_000, LENGTH).astype(np.int32)
            rows.append(
                Sample(
                    prompt.group,
                    prompt.id,
                    index,
                    np.array(prompt.token_ids, np.int32),
                    ids,
                    np.full(LENGTH, -1.0, np.float32),
                    np.zeros(LENGTH, np.int16),
                    ((0, 0),),
                    FinishReason.STOP,
                )
            )
    return SampleBatch.from_samples(rows)


def raylign(model, batch: SampleBatch):
    engine = DeepSpeedEngine(
        load_policy(ModelSettings(str(model))),
        zero=ZeroSettings(0),
        optimizer=OptimizerSettings(lr=1e-6),
        dtype="bfloat16",
        device=torch.device("cpu"),
    )
    learner = PolicyLearner(engine, Method(PRESETS["grpo"]), UpdateSettings(micro_batch_tokens=1024))
    scores = ScoreBatch(np.random.default_rng(1).random(len(batch)), {})
    reference = np.full(len(batch.token_ids), -1.0, np.float32)
    inputs = StepInputs(1, batch, scores, 0.04, reference=reference)
    return lambda: learner.update(inputs)


def plain_loop(model, batch: SampleBatch, rows_at_once: int = 8):
    # The torch engine is AdamW on a float32 master copy and nothing else: the same optimiser on both sides.
    engine = TorchEngine(
        load_policy(ModelSettings(str(model))),
        optimizer=OptimizerSettings(lr=1e-6),
        dtype="bfloat16",
        device=torch.device("cpu"),
    )
    advantages = torch.randn(len(batch), generator=torch.Generator().manual_seed(1))

    def step() -> None:
        for begin in range(0, len(batch), rows_at_once):
            rows = range(begin, min(begin + rows_at_once, len(batch)))
            sequences = [np.concatenate([batch.prompt_of(r), batch.response_of(r)]) for r in rows]
            width = max(map(len, sequences))
            ids = torch.zeros(len(sequences), width, dtype=torch.long)
            mask = torch.zeros(len(sequences), width, dtype=torch.long)
            for i, s in enumerate(sequences):  # left padding, as generation leaves it
                ids[i, width - len(s) :] = torch.from_numpy(s.astype(np.int64))
                mask[i, width - len(s) :] = 1
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = engine.module(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            logp = logits[:, -LENGTH - 1 : -1].float().log_softmax(-1)
            lp = logp.gather(2, ids[:, -LENGTH:, None])[..., 0]
            ratio = torch.exp(lp - lp.detach())
            kl = torch.exp(-1.0 - lp) - (-1.0 - lp) - 1.0
            loss = -(ratio * advantages[list(rows), None]) + 0.04 * kl
            engine.backward(loss.mean(1).sum() / len(batch), last=begin + rows_at_once >= len(batch))
        engine.step()

    return step


if __name__ == "__main__":
    main()
