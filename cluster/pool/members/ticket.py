"""A ticket: prompts that one worker gets in one call, and what it is worth to whom it is given.

In: references and numbers. Out: frozen records. A ticket whose worker leaves goes back to the queue with what was made
of it (`carried`), by reference. Left out: who gets it (cluster/pool/dispatch.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from actors.rollouts.generation import RolloutStats
from actors.types import SamplingSettings
from cluster.experience.columns import Ref


@dataclass(frozen=True, slots=True)
class Ticket:
    """number: unique in a pool, in order of admission. prompts: reference of a list of Prompts, `groups` theirs.
    version: the only one that may serve it, None for any. recorded: how many samples are wanted apart at least, for a
    probe. carried: reference of the SampleBatch that earlier workers made of it. prefer: the worker that has its prompt
    in its cache, or that a fixed assignment names. tries: workers it has failed on;
    avoid: the last of them, which gets it again only if there is no other."""

    number: int
    prompts: Ref
    groups: tuple[int, ...]
    sampling: SamplingSettings
    version: int | None = None
    recorded: int = 0
    carried: Ref | None = None
    carried_tokens: int = 0
    prefer: str | None = None
    tries: int = 0
    avoid: str | None = None

    @property
    def sequences(self) -> int:
        return len(self.groups) * self.sampling.samples_per_prompt

    @property
    def tokens(self) -> int:
        """The most that it may still make: what a worker that takes it has before it."""
        return self.sequences * self.sampling.max_tokens - self.carried_tokens

    def handed_on(self, batch: Ref, tokens: int) -> Ticket:
        """The same prompts with what was made of them so far: `tokens` in all."""
        return replace(self, carried=batch, carried_tokens=tokens, prefer=None)


@dataclass(frozen=True, slots=True)
class Finished:
    """A ticket's samples, all of them whole. recorded: the first few of them, by reference. member: who ended it."""

    ticket: Ticket
    batch: Ref
    recorded: Ref
    stats: RolloutStats
    member: str
