"""What every learner has, whatever it learns: weights, state, and (a policy's) log-probs.

In: an engine that holds the model. Out: weight buckets, files, log-probs. Every method is collective: all ranks of the
group call it with the same arguments. Left out: losses and updates (policy.py, preference.py, supervised.py,
reward.py), Ray.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.models.adapters import adapters_off, published_name
from actors.models.forward import score_tokens
from actors.response_mask import row_sums
from actors.transports.buckets import cut, make_bucket
from actors.transports.interface import Sender
from actors.types import SampleBatch, WeightBucket, WeightSummary, digest_buckets
from learners.engines.interface import StepResult, TrainEngine, unwrapped
from learners.engines.merging import Scaling, merged, scalings
from learners.engines.saving import Write, write_now
from learners.methods.method import StepInputs, TokenColumn, UpdateResult, UpdateSettings, required
from learners.stepping import MicroLoss, optimise


class LearnerBase:
    """One rank's hold on a model in training."""

    def __init__(self, engine: TrainEngine, update: UpdateSettings) -> None:
        self._engine = engine
        self._update = update

    @functools.cached_property
    def _adapted(self) -> dict[str, Scaling]:
        """Layers that hold adapters; empty where the whole model is tuned."""
        return scalings(unwrapped(self._engine.module))

    @property
    def rank(self) -> int:
        return self._engine.rank

    @property
    def config_changes(self) -> Mapping[str, Any]:
        """What an export's config.json says otherwise than the one it started from."""
        return {}

    def full_parameters(self, max_bytes: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """Whole parameters by their Hugging Face names, an adapter merged into them."""
        return merged(self._engine.full_parameters(max_bytes), self._adapted)

    def published_parameters(self, max_bytes: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """What an engine must receive: everything, or the adapter alone by its published names."""
        if not self._adapted:
            yield from self.full_parameters(max_bytes)
            return
        for part in self._engine.full_parameters(max_bytes, trained=True):
            yield [(published_name(name), tensor) for name, tensor in part]

    def weights(self, max_bytes: int, sender: Sender | None = None) -> Iterator[WeightBucket | WeightSummary | Any]:
        """The current weights as buckets and, last, their summary; rank 0 yields, the others take part in gathering.
        With a sender each bucket is followed by the parcel that the sender makes of it, which is then delivered."""
        named = (item for part in self.published_parameters(max_bytes) for item in part)
        digests: list[str] = []
        nbytes = 0
        for index, last, tensors in cut(named, max_bytes):
            if self._engine.rank != 0:
                continue
            bucket = make_bucket(index, last, tensors)
            digests.append(bucket.digest())
            nbytes += bucket.data.nbytes
            yield bucket
            if sender is not None:
                yield sender.pack(bucket, tensors)
                sender.deliver()
        if self._engine.rank == 0:
            yield WeightSummary(digest_buckets(digests), nbytes)

    def _one_step(self, batch: SampleBatch, loss: MicroLoss, *, max_tokens: int | None = None) -> UpdateResult:
        """One optimiser step on all rows of the batch, in forwards of at most `max_tokens` (None: the settings')."""
        start = time.monotonic()
        budget = self._update.micro_batch_tokens if max_tokens is None else max_tokens
        result, metrics = optimise(self._engine, batch, list(range(len(batch))), budget, loss)
        return UpdateResult(
            metrics=metrics | step_metrics(result),
            applied=result.applied,
            skipped=int(not result.applied),
            seconds=time.monotonic() - start,
        )

    def save(self, directory: Path, write: Write = write_now) -> None:
        self._engine.save(directory, write)

    def load(self, directory: Path) -> None:
        self._engine.load(directory)


class PolicyBase(LearnerBase):
    """A learner of a language model. Logits are divided by `temperature`, as they were in sampling."""

    def __init__(self, engine: TrainEngine, update: UpdateSettings, temperature: float = 1.0) -> None:
        super().__init__(engine, update)
        self._temperature = temperature

    def logprobs(self, batch: SampleBatch, temperature: float | None = None) -> TokenColumn:
        """This rank's share of the current policy's log-probs; temperature None: the sampling one."""
        slots, values = score_tokens(
            self._engine.module,
            batch,
            range(len(batch)),
            max_tokens=self._update.micro_batch_tokens,
            temperature=self._temperature if temperature is None else temperature,
            device=self._engine.device,
            rank=self._engine.rank,
            ranks=self._engine.world_size,
        )
        return TokenColumn(slots, values)

    def reference_logprobs(self, batch: SampleBatch) -> TokenColumn:
        """This rank's share of the base's log-probs: the policy's, its adapter off."""
        if not self._adapted:
            raise ValueError("a policy that is tuned whole is not its own reference; load one beside it")
        with adapters_off(self._engine.module):
            return self.logprobs(batch)

    def row_logprobs(self, inputs: StepInputs) -> np.ndarray:
        """float64 [B, 2]: each row's summed log-prob (`inputs.old`) over its trained tokens, and how many those are."""
        return row_sums(required(inputs.old, "old"), inputs.batch)


def step_metrics(result: StepResult) -> dict[str, float]:
    return {"policy/grad_norm": result.grad_norm, "policy/lr": result.lr}
