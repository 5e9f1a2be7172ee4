"""The one file that talks to Ray about workers: actors around the roles, and typed handles for the loops.

In: settings and references. Out: references and small statistics; a payload passes through the driver only as a
reference, given as a top-level argument, which is where Ray resolves it. Every wait has a number of seconds; a worker
that died or timed out becomes one RunFailed sentence. Left out: what the roles do (roles.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.engine import EngineSettings
from actors.types import PolicyVersion, Prompt, SamplingSettings, WeightSummary
from cluster.columns import Ref, Samples, StepColumns
from cluster.errors import RunFailed
from cluster.placement import RolePlan, process_environment
from cluster.roles.learner import LearnerRole, LearnerSpec
from cluster.roles.rollout import RolloutRole
from cluster.roles.scorer import ScorerRole, ScorerSpec
from learners.method import UpdateResult, assemble


def get(refs: Any, timeout_s: float, what: str) -> Any:
    """Wait for results; RunFailed naming `what` when a worker died or the time is up."""
    try:
        return ray.get(refs, timeout=timeout_s)
    except GetTimeoutError as error:
        raise RunFailed(f"{what}: no answer within {timeout_s:g} s") from error
    except RayActorError as error:
        raise RunFailed(f"{what}: the worker died ({_first_line(error)})") from error
    except RayTaskError as error:
        raise RunFailed(f"{what}: {type(error.cause).__name__}: {error.cause}") from error


def put(value: Any) -> Ref:
    return ray.put(value)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _options(role: RolePlan, name: str) -> dict[str, Any]:
    env = process_environment(role, name)
    return {"num_cpus": role.cpus, "num_gpus": role.gpus, "runtime_env": {"env_vars": env}, "name": name}


class RolloutPool:
    """The rollout workers. Prompts go to workers by index, so a run's assignment never depends on timing."""

    def __init__(
        self, role: RolePlan, settings: EngineSettings, kind: str, stall_timeout_s: float, timeout_s: float
    ) -> None:
        actor = ray.remote(RolloutRole)
        self._actors = [
            actor.options(**_options(role, f"rollout-{i}")).remote(settings, kind, stall_timeout_s)
            for i in range(role.count)
        ]
        self._timeout_s = timeout_s

    def __len__(self) -> int:
        return len(self._actors)

    def adopt(self, version: PolicyVersion, timeout_s: float) -> None:
        """Wait until every engine runs; their weights, fresh from disk, are `version`."""
        get([a.adopt.remote(version) for a in self._actors], timeout_s, "starting the rollout workers")

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, version: int, recorded: int = 0
    ) -> Samples:
        """Samples for all prompts, stamped with `version`."""
        n = len(self._actors)
        parts = [list(prompts[i::n]) for i in range(n) if prompts[i::n]]
        prompt_refs = [ray.put(part) for part in parts]
        triples = [
            actor.generate.options(num_returns=3).remote(ref, sampling, version, recorded)
            for actor, ref in zip(self._actors, prompt_refs, strict=False)
        ]
        stats = get([triple[2] for triple in triples], self._timeout_s, "generating")
        return Samples(
            chunks=tuple(triple[0] for triple in triples),
            prompts=tuple(prompt_refs),
            groups=tuple(prompt.group for part in parts for prompt in part),
            samples_per_prompt=sampling.samples_per_prompt,
            recorded=triples[0][1],
            stats=tuple(stats),
        )

    def begin_publish(self, number: int) -> None:
        """From here until `finish_publish` the engines hold no version. Nothing waits: failures show at the end."""
        self._publishing = [a.begin_publish.remote(number) for a in self._actors]

    def receive(self, bucket: Ref) -> None:
        """Hand every engine one bucket; they load it while the learner makes the next."""
        self._publishing += [a.receive.remote(bucket) for a in self._actors]

    def finish_publish(self, version: PolicyVersion, timeout_s: float) -> None:
        """Returns when each engine has proved that it holds `version.digest`."""
        self._publishing += [a.finish_publish.remote(version) for a in self._actors]
        get(self._publishing, timeout_s, f"publishing version {version.number}")

    def probe(self, batch: Ref, timeout_s: float) -> list[Any]:
        """Each engine's log-probs of recorded samples."""
        return get([a.probe.remote(batch) for a in self._actors], timeout_s, "probing the engines")

    def admit(self, version: PolicyVersion, timeout_s: float) -> None:
        """Let the engines take traffic at `version`."""
        get([a.admit.remote(version) for a in self._actors], timeout_s, f"admitting version {version.number}")

    def close(self) -> None:
        _stop(self._actors)


class ScorerPool:
    """The scorers: reward functions out of process, reward models."""

    def __init__(self, role: RolePlan, spec: ScorerSpec, timeout_s: float) -> None:
        actor = ray.remote(ScorerRole)
        self._actors = [actor.options(**_options(role, f"scorer-{i}")).remote(spec) for i in range(role.count)]
        self._timeout_s = timeout_s

    def score(self, samples: Samples) -> list[tuple[Ref, Ref]]:
        """(scores, stats) references, one pair a chunk."""
        return [
            self._actors[i % len(self._actors)].score.options(num_returns=2).remote(chunk, prompts)
            for i, (chunk, prompts) in enumerate(zip(samples.chunks, samples.prompts, strict=True))
        ]

    def wait(self, refs: Sequence[Ref]) -> list[Any]:
        return get(list(refs), self._timeout_s, "scoring")

    def close(self) -> None:
        _stop(self._actors)


class LearnerGroup:
    """The ranks of one learner group; every call goes to all of them, in the same order."""

    def __init__(self, role: RolePlan, spec: LearnerSpec, timeout_s: float) -> None:
        actor = ray.remote(LearnerRole)
        self._ranks = [
            actor.options(**_options(role, f"learner-{rank}")).remote(spec, rank, role.count)
            for rank in range(role.count)
        ]
        self._timeout_s = timeout_s

    def build(self, timeout_s: float) -> Ref:
        """Start loading on all ranks; give the result to `wait_built`."""
        address, port = get(self._ranks[0].rendezvous.remote(), timeout_s, "starting the learner")
        return [rank.build.remote(address, port) for rank in self._ranks]

    def wait_built(self, refs: Ref, timeout_s: float) -> list[dict[str, float]]:
        return get(refs, timeout_s, "loading the learner's models")

    def policy_logprobs(self, chunks: Sequence[Ref], temperature: float | None = None) -> tuple[Ref, ...]:
        return tuple(r.policy_logprobs.remote(temperature, *chunks) for r in self._ranks)

    def reference_logprobs(self, chunks: Sequence[Ref]) -> tuple[Ref, ...]:
        return tuple(r.reference_logprobs.remote(*chunks) for r in self._ranks)

    def values(self, chunks: Sequence[Ref]) -> tuple[Ref, ...]:
        return tuple(r.values.remote(*chunks) for r in self._ranks)

    def wait(self, refs: Sequence[Ref], what: str) -> list[Any]:
        return get(list(refs), self._timeout_s, what)

    def update_policy(self, columns: StepColumns, show_rows: tuple[int, ...] = ()) -> UpdateResult:
        layout, refs = columns.arguments()
        done = [r.update_policy.remote(show_rows, layout, *refs) for r in self._ranks]
        return get(done, self._timeout_s, "updating the policy")[0]

    def update_critic(self, columns: StepColumns) -> UpdateResult:
        layout, refs = columns.arguments()
        done = [r.update_critic.remote(layout, *refs) for r in self._ranks]
        return get(done, self._timeout_s, "updating the critic")[0]

    def row_rewards(self, columns: StepColumns) -> Any:
        """float64 [B]: implicit rewards beta (lp - ref), the policy's log-probs being `columns.old`."""
        return self._from_first("row_rewards", "comparing responses", columns)

    def row_logprobs(self, columns: StepColumns) -> Any:
        """float64 [B, 2]: summed log-probs of trained tokens, `columns.old` being all of them, and their number."""
        return self._from_first("row_logprobs", "summing log-probs", columns)

    def kto_baseline(self, columns: StepColumns) -> float:
        """KTO's reference point from mismatched samples: `columns.old` and `columns.row_reference` are theirs."""
        return self._from_first("kto_baseline", "comparing mismatched responses", columns)

    def row_scores(self, chunks: Sequence[Ref]) -> Any:
        """float32 [B]: a reward model's scores."""
        shares = get([r.row_scores.remote(*chunks) for r in self._ranks], self._timeout_s, "scoring rows")
        return assemble(shares, sum(len(share.slots) for share in shares))

    def pick(self, rows: Sequence[int], chunks: Sequence[Ref]) -> Ref:
        """A batch of only these rows of the chunks end to end, two by two as chosen and rejected."""
        return self._ranks[0].pick.remote(list(rows), *chunks)

    def dump(self, columns: StepColumns, path: str) -> None:
        self._from_first("dump", "saving the batch", columns, path)

    def _from_first(self, call: str, what: str, columns: StepColumns, *before: Any) -> Any:
        """Rank 0's answer to a call that is not collective."""
        layout, refs = columns.arguments()
        return get(getattr(self._ranks[0], call).remote(*before, layout, *refs), self._timeout_s, what)

    def weights(
        self, max_bytes: int, timeout_s: float, on_bucket: Callable[[Ref], None]
    ) -> tuple[list[Ref], WeightSummary]:
        """(bucket references, their summary) of the current policy; `on_bucket` hears of each as soon as it is there.
        The driver owns the buckets, so they outlive a rank."""
        streams = [r.weights.options(num_returns="streaming").remote(max_bytes) for r in self._ranks]
        refs: list[Ref] = []
        for ref in _drain(streams[0], timeout_s):
            if refs:  # the stream's last item is the summary: a bucket is known to be one when another item follows
                on_bucket(refs[-1])
            refs.append(ref)
        for stream in streams[1:]:
            for _ in _drain(stream, timeout_s):
                pass
        return refs[:-1], get(refs[-1], timeout_s, "gathering the weights")

    def save(self, directory: str) -> None:
        get([r.save.remote(directory) for r in self._ranks], self._timeout_s, "saving the learner's state")

    def load(self, directory: str) -> None:
        get([r.load.remote(directory) for r in self._ranks], self._timeout_s, "restoring the learner's state")

    def export(self, directory: str, source: str, facts: Mapping[str, Any]) -> None:
        done = [r.export.remote(directory, source, facts) for r in self._ranks]
        get(done, self._timeout_s, "exporting the policy")

    def close(self) -> None:
        _stop(self._ranks)


def _drain(stream: Any, timeout_s: float) -> Iterator[Ref]:
    """The references of a streaming call; RunFailed when the next does not come in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        ready, _ = ray.wait([stream], timeout=max(0.0, deadline - time.monotonic()), fetch_local=False)
        if not ready:
            raise RunFailed(f"gathering the weights: no answer within {timeout_s:g} s")
        try:
            yield next(stream)
        except StopIteration:
            return


def _stop(actors: Sequence[Any]) -> None:
    for actor in actors:
        ray.kill(actor)


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What one node answered; exactly one of `value` and `error` is set."""

    node: str
    value: Any
    error: str | None


def on_every_node(function: Any, *arguments: Any, timeout_s: float) -> list[NodeAnswer]:
    """Run `function(*arguments)` once on each live node, all at once; a node that fails says why."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    task = ray.remote(num_cpus=0)(function)
    refs = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False), max_retries=0
        ).remote(*arguments)
        for node in nodes
    ]
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_s, fetch_local=False)
    answers = []
    for node, ref in zip(nodes, refs, strict=True):
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        if ref not in ready:
            answers.append(NodeAnswer(name, None, f"no answer within {timeout_s:g} s"))
            continue
        try:
            answers.append(NodeAnswer(name, ray.get(ref), None))
        except RayError as error:  # fault boundary: one node's failure is a finding, the others still answer
            answers.append(NodeAnswer(name, None, str(error).strip().splitlines()[-1]))
    return answers
