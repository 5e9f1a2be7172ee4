"""Reward functions: how they are written, named and weighted. Light on purpose: the reward process imports it.

THE CALLING CONVENTION, the only one. Per sample:

    def reward(prompt: str, response: str, data: Mapping) -> float

or for all samples of a batch at once, marked with `@batched` (or `batched: true` in the config):

    @batched
    def reward(prompts: list[str], responses: list[str], data: list[Mapping]) -> list[float]

Either may be `async def`: per-sample calls are then awaited concurrently. `data` holds the prompt's other columns,
its text under `prompt`, and `response_tokens` and `finish_reason`. Arguments set in the config arrive as keywords.
An exception, None or a value that is not finite means "no score", never 0.

In: samples, the config's functions, models and judges. Out: a `Score` a sample, each part beside it, or why there is
none (runner.py, scorer.py; untrusted code runs in process.py's child). Left out: what is learned from a score.
"""

from actors.rewards.spec import RewardSpec, batched

__all__ = ["RewardSpec", "batched"]
