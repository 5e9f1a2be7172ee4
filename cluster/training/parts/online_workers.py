"""The workers of a run that makes its own samples: learner group, rollout pool, scorers.

In: an open run, a placement. Out: `OnlineWorkers`, all asked of Ray at once: they import and load while the driver
reads the data. Left out: what they are asked to do (cluster/training), one pool's own making (rollouts.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from actors.models.pretrained import resolve_model
from actors.rewards import RewardSpec
from cluster.config import resolve
from cluster.config.placement import Placement
from cluster.config.schema import Config
from cluster.config.transport import choose_transport
from cluster.pool.pool import RolloutPool
from cluster.roles.learner import LearnerSpec
from cluster.training.parts.evaluation import scorer_spec
from cluster.training.parts.logbook import Run
from cluster.training.parts.rollouts import start_pool
from cluster.workers import LearnerGroup, ScorerPool


@dataclass(slots=True)
class News:
    """What happens to workers, as an event. aloud: also for who looks on; the workers of the start are expected."""

    run: Run
    aloud: bool = False

    def tell(self, kind: str, text: str) -> None:
        self.run.events.write(kind, text)
        if self.aloud:
            self.run.console.event(text)


@dataclass(frozen=True, slots=True)
class OnlineWorkers:
    """built: seconds that each rank's loading took, by phase, once the learner group stands."""

    learner: LearnerGroup
    rollouts: RolloutPool
    scorers: ScorerPool
    transport: str
    news: News
    built: Future[list[dict[str, float]]]

    def close(self) -> None:
        self.rollouts.close()
        self.scorers.close()
        self.learner.close()


def start_online_workers(
    run: Run, placement: Placement, reward_specs: Sequence[RewardSpec], base: Path
) -> OnlineWorkers:
    """Ask Ray for every worker; nothing waits. base: the folder that reward files are named from."""
    config, news = run.config, News(run)
    transport, why = choose_transport(config, placement.device)
    run.events.write("transport", f"weights go by {transport}: {why}")
    with ExitStack() as undo:
        timeout_s = config.learner.update_timeout_s
        spec = learner_spec(config, run.model_path, placement, transport)
        learner = LearnerGroup(placement.role("learner"), spec, timeout_s)
        undo.callback(learner.close)
        rollouts = start_pool(config, placement, run.model_path, news.tell)
        undo.callback(rollouts.close)
        scorers = ScorerPool(
            placement.role("scorer"),
            scorer_spec(config, run.model_path, reward_specs, base),
            config.rollout.timeout_s,
            config.recovery.scorer_failures,
            news.tell,
        )
        undo.pop_all()
    return OnlineWorkers(learner, rollouts, scorers, transport, news, _build(learner, config.ray.start_timeout_s))


def _build(learner: LearnerGroup, timeout_s: float) -> Future[list[dict[str, float]]]:
    """The learner's rendezvous must not wait for the engines: a thread gives the ranks their address meanwhile."""
    starter = ThreadPoolExecutor(1, thread_name_prefix="learner")
    built = starter.submit(lambda: learner.wait_built(learner.build(timeout_s), timeout_s))
    starter.shutdown(wait=False)
    return built


def learner_spec(config: Config, model_path: Path, placement: Placement, transport: str) -> LearnerSpec:
    """What the learner group of an online run trains."""
    total = resolve.optimizer_steps(config, config.steps)
    critic = None
    if config.critic is not None:
        own = config.critic.path
        critic = resolve.critic_settings(config, str(model_path if own is None else resolve_model(own)), total)
    return LearnerSpec(
        trains=resolve.training(config),
        policy=resolve.policy_settings(config, str(model_path), total),
        critic=critic,
        reference_path=str(model_path) if resolve.needs_reference(config) else None,
        device=placement.device,
        timeout_s=config.learner.update_timeout_s,
        temperature=resolve.sampling_settings(config).temperature,
        transport=transport,
        weights_timeout_s=config.weights.timeout_s,
        gives_back=config.rollout.sleep_level > 0,
        saves_later=resolve.saves_later(config, placement.device),
    )
