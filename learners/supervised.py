"""The supervised learner: one rank's steps on demonstrations, loss on the assistant's tokens alone.

In: demonstrations laid out as a SampleBatch (turns -1: not the assistant's). Out: metrics. Everything else (log-probs,
weights, state, export) it shares with the policy's learner. Left out: data, evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from actors.models.forward import PackedTensors, token_logprobs
from actors.models.packing import MicroBatch
from actors.response_mask import response_mask
from learners.base import PolicyBase
from learners.methods.aggregation import masked
from learners.methods.method import StepInputs, UpdateResult


class SupervisedLearner(PolicyBase):
    """One rank of a policy's learner group under the negative log-likelihood of demonstrations."""

    def update(self, inputs: StepInputs, show_rows: tuple[int, ...] = ()) -> UpdateResult:
        """One optimiser step: -sum(lp) / N over the N trained tokens of the whole batch (token-mean), in nats."""
        batch = inputs.batch
        trained = torch.from_numpy(response_mask(batch))
        total = max(int(trained.sum()), 1)

        def micro_loss(packed: PackedTensors, micro: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
            flat, _ = token_logprobs(self._engine.module, packed)
            loss = -masked(flat.cpu(), trained[torch.from_numpy(micro.slots)]).sum() / total
            return loss, {"loss": loss.detach()}

        result = self._one_step(batch, micro_loss)
        return replace(result, metrics={**result.metrics, "sft/tokens": float(total)})
