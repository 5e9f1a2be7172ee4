"""One generation in the making: the samples of one call, from their first token to the columns that go back.

In: prompts, sampling settings, perhaps the unfinished samples of an earlier worker (a SampleBatch whose rows end with
ABORT). Out: the engine's requests, and at the end a SampleBatch with its RolloutStats. A generation that is interrupted
gives back what it has: finished samples, and the others with ABORT, which another worker carries on from their last
token. Left out: the engine, deadlines (worker.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from actors.engines.interface import Request, StepOutput
from actors.types import FinishReason, Prompt, Sample, SampleBatch, SamplingSettings, sample_seed


@dataclass(frozen=True, slots=True)
class RolloutStats:
    """One generation in numbers. prompt_tokens counts a prompt once, whatever its number of samples; logprob_sum is
    over response tokens, of the sampling distribution (nats). unfinished: samples that were interrupted, counted in
    nothing else but `samples` and partial_tokens, what they have; carried_tokens: those that an earlier worker made.
    version_sum: of every response token's policy version; oldest: the least of them."""

    seconds: float
    samples: int
    prompt_tokens: int
    response_tokens: int
    truncated: int
    length_max: int
    logprob_sum: float
    unfinished: int = 0
    partial_tokens: int = 0
    carried_tokens: int = 0
    version_sum: int = 0
    oldest: int = 0

    @property
    def length_mean(self) -> float:
        return self.response_tokens / max(self.samples, 1)

    @property
    def logprob_mean(self) -> float:
        """Mean log-prob of a response token; at temperature 1 minus this is an unbiased estimate of the entropy."""
        return self.logprob_sum / max(self.response_tokens, 1)

    @staticmethod
    def merge(stats: Sequence[RolloutStats]) -> RolloutStats:
        """Of workers that ran side by side: the slowest one's seconds, everything else added up."""

        def total(name: str) -> int:
            return sum(getattr(s, name) for s in stats)

        return RolloutStats(
            seconds=max(s.seconds for s in stats),
            samples=total("samples"),
            prompt_tokens=total("prompt_tokens"),
            response_tokens=total("response_tokens"),
            truncated=total("truncated"),
            length_max=max(s.length_max for s in stats),
            logprob_sum=sum(s.logprob_sum for s in stats),
            unfinished=total("unfinished"),
            partial_tokens=total("partial_tokens"),
            carried_tokens=total("carried_tokens"),
            version_sum=total("version_sum"),
            oldest=min(s.oldest for s in stats),
        )


@dataclass(slots=True)
class _Growing:
    """A sample in the making."""

    prompt: Prompt
    sample_index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def absorb(self, output: StepOutput, version: int) -> None:
        if output.token_ids and (not self.spans or self.spans[-1][1] != version):
            self.spans.append((len(self.tokens), version))
        self.tokens.extend(output.token_ids)
        self.logprobs.extend(output.logprobs)
        self.finish_reason = output.finish_reason

    def carry_on(self, sample: Sample) -> None:
        """Take over what another worker made of this sample."""
        self.tokens, self.logprobs = sample.token_ids.tolist(), sample.logprobs.tolist()
        self.spans = list(sample.spans)
        if sample.finish_reason is not FinishReason.ABORT:
            self.finish_reason = sample.finish_reason

    def sample(self) -> Sample:
        assert self.finish_reason is not None
        return Sample(
            group=self.prompt.group,
            prompt_id=self.prompt.id,
            sample_index=self.sample_index,
            prompt_tokens=np.array(self.prompt.token_ids, np.int32),
            token_ids=np.array(self.tokens, np.int32),
            logprobs=np.array(self.logprobs, np.float32),
            turns=np.zeros(len(self.tokens), np.int16),
            spans=tuple(self.spans),
            finish_reason=self.finish_reason,
        )


class Generation:
    """`samples_per_prompt` samples of each prompt: rows in the prompts' order, then by sample index. serial: unlike
    that of any other generation of the engine. ValueError for two prompts of one group."""

    def __init__(
        self,
        serial: int,
        prompts: Sequence[Prompt],
        sampling: SamplingSettings,
        carried: SampleBatch | None,
        began_s: float,
    ) -> None:
        if len({p.group for p in prompts}) < len(prompts):
            raise ValueError("two prompts have the same group: a group is one admission, send it once")
        self._sampling = sampling
        self._began_s = began_s
        self._rows = {
            f"{prompt.group}/{index}/{serial}": _Growing(prompt, index)
            for prompt in prompts
            for index in range(sampling.samples_per_prompt)
        }
        self._carried_tokens = 0 if carried is None else self._carry_on(carried, serial)
        self.unfinished = {i for i, row in self._rows.items() if row.finish_reason is None}

    def _carry_on(self, carried: SampleBatch, serial: int) -> int:
        tokens = 0
        for sample in carried:
            # A stop string may begin before the hand-over and end after it, where no engine would see it whole.
            if self._sampling.stop and sample.finish_reason is FinishReason.ABORT:
                continue
            self._rows[f"{sample.group}/{sample.sample_index}/{serial}"].carry_on(sample)
            tokens += len(sample.token_ids)
        return tokens

    @property
    def done(self) -> bool:
        return not self.unfinished

    def requests(self) -> Iterator[Request]:
        """Of the samples that are not finished, in row order."""
        for request_id, row in self._rows.items():
            if request_id in self.unfinished:
                yield self._request(request_id, row)

    def _request(self, request_id: str, row: _Growing) -> Request:
        s, made = self._sampling, len(row.tokens)
        return Request(
            id=request_id,
            prompt_tokens=(*row.prompt.token_ids, *row.tokens),
            temperature=s.temperature,
            max_tokens=s.max_tokens - made,
            seed=sample_seed(s.seed, row.prompt.group, row.sample_index),
            top_p=s.top_p,
            top_k=s.top_k,
            min_tokens=max(0, s.min_tokens - made),
            stop=s.stop,
            made=made,
        )

    def absorb(self, output: StepOutput, version: int) -> None:
        """New tokens of one of its requests, decoded under `version`."""
        self._rows[output.request_id].absorb(output, version)
        if output.finish_reason is not None:
            self.unfinished.discard(output.request_id)

    def interrupt(self) -> None:
        """Leave what is unfinished as it stands."""
        for request_id in self.unfinished:
            self._rows[request_id].finish_reason = FinishReason.ABORT
        self.unfinished = set()

    def result(self, now_s: float) -> tuple[SampleBatch, RolloutStats]:
        """All rows, interrupted ones with ABORT, and their numbers."""
        batch = SampleBatch.from_samples([row.sample() for row in self._rows.values()])
        whole = batch.finish_reasons != FinishReason.ABORT
        lengths, in_whole = batch.lengths, np.repeat(whole, batch.lengths)
        versions = token_versions(batch)
        return batch, RolloutStats(
            seconds=now_s - self._began_s,
            samples=len(batch),
            prompt_tokens=len(batch.prompt_tokens),
            response_tokens=int(lengths[whole].sum()),
            truncated=int((batch.finish_reasons == FinishReason.LENGTH).sum()),
            length_max=int(lengths[whole].max(initial=0)),
            logprob_sum=float(batch.logprobs[in_whole].sum(dtype=np.float64)),
            unfinished=int((~whole).sum()),
            partial_tokens=int(lengths[~whole].sum()),
            carried_tokens=self._carried_tokens,
            version_sum=int(versions[in_whole].sum()),
            oldest=int(versions.min(initial=np.iinfo(np.int64).max)) if len(versions) else 0,
        )


def token_versions(batch: SampleBatch) -> np.ndarray:
    """int64 [T]: the policy version that each response token was decoded at."""
    starts = batch.offsets[batch.spans[:, 0]] + batch.spans[:, 1]
    return np.repeat(batch.spans[:, 2], np.diff([*starts, len(batch.token_ids)]))
