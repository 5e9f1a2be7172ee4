"""Everything about a config that can be known before a worker starts, in one pass.

In: a checked Config (and the run directory it is meant for). Out: `Examination`: `wrong` (must be mended wherever the
run goes), `cannot_run` (this machine lacks something), and findings for the report. Left out: printing (report.py).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.engines.limits import read_model_config, unsupported_reason, untrainable_reason
from cluster.config import Config, Problem
from cluster.config.placement import Placement, plan, shortage
from cluster.config.resolve import engine_settings
from cluster.config.sections.reward import Judge, RewardModel
from cluster.config.transport import hardware_lacks
from cluster.inputs.online import is_hub_id, load_tokenizer
from cluster.inspect.data import (
    DataFindings,
    RewardFindings,
    first_row_problems,
    look_at_data,
    scoring_functions,
    start_rewards,
    try_rewards,
)
from cluster.inspect.fit import cache_problems, disk_problems, memory_problems
from cluster.inspect.machine import GIB, Machine, this_machine, unreachable_reason
from cluster.inspect.memory import MemoryPlan, gpu_bytes_needed, plan_memory
from cluster.inspect.model import FoundModel, ModelFacts, facts_of, find_model


@dataclass(slots=True)
class Examination:
    """wrong and cannot_run are Problems; notes are sentences. What could not be found out stays None. device: where
    the plan runs; gpus_needed, gpu_bytes: what the same plan asks of GPUs."""

    config: Config
    machine: Machine
    wrong: list[Problem] = field(default_factory=list)
    cannot_run: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: FoundModel | None = None
    facts: ModelFacts | None = None
    placement: Placement | None = None
    memory: MemoryPlan | None = None
    gpus_needed: float = 0.0
    gpu_bytes: int | None = None
    tokenizer: Any = None
    data: DataFindings | None = None
    rewards: RewardFindings | None = None

    @property
    def problems(self) -> list[Problem]:
        """All of both kinds: what keeps a run from starting here."""
        return [*self.wrong, *self.cannot_run]


def examine(config: Config, run_dir: Path | None = None, machine: Machine | None = None) -> Examination:
    """Look at packages, models, plan, data and rewards. The reward process starts while the data are read."""
    found = Examination(config, machine or this_machine())
    found.wrong += _missing_packages(config)
    with ThreadPoolExecutor(1) as helper:
        starting = helper.submit(start_rewards, config) if scoring_functions(config) else None
        try:
            model = found.model = find_model(config.model.path)
            _look_at_model(found, model)
            _plan(found, run_dir)
            _look_at_inputs(found, model)
        except BaseException:
            if starting and (started := starting.result()[0]) is not None:
                started.close()
            raise
        runner, problems = starting.result() if starting else (None, [])
    found.wrong += problems
    if runner is not None:
        with runner:
            if found.data is not None:
                found.rewards, problems = try_rewards(runner, found.data.samples)
                found.wrong += problems
    return found


def _missing_packages(config: Config) -> Iterator[Problem]:
    online = config.algorithm.online
    needed = [
        ("rollout.engine", "vllm", "raylign[cpu] or raylign[cuda]", online and config.rollout.engine == "vllm"),
        ("learner.backend", "deepspeed", "raylign", config.learner.backend == "deepspeed"),
        ("tracking.wandb", "wandb", "raylign[tracking]", config.tracking.wandb is not None),
        ("tracking.mlflow", "mlflow", "raylign[tracking]", config.tracking.mlflow is not None),
    ]
    for path, module, extra, used in needed:
        if used and importlib.util.find_spec(module) is None:
            yield Problem(path, f"the package {module} is not installed; run: pip install '{extra}'")


def _look_at_model(found: Examination, model: FoundModel) -> None:
    config = found.config
    _report_missing(found, "model.path", model)
    facts = found.facts = facts_of(model)
    if model.path is None or facts is None:  # files that are here tell of themselves
        return
    described = read_model_config(str(model.path))
    if (untrainable := untrainable_reason(described, config.model.max_length)) is not None:
        found.wrong.append(Problem("model.path", untrainable))
    found.wrong += _adapter_problems(config, model.path)
    classifies = _classifies(described)
    if classifies and config.algorithm.name != "reward_model":
        found.wrong.append(Problem("model.path", "a classifier makes no text; give a causal language model"))
    elif classifies and _labels(described) != 1:
        wrong = f"its head has {_labels(described)} labels and a reward model's has one; start from a language model"
        found.wrong.append(Problem("model.path", wrong))
    positions = facts.positions
    if positions and config.model.max_length > positions:
        wrong = f"must be at most the model's {positions} positions, got {config.model.max_length}"
        found.wrong.append(Problem("model.max_length", wrong))
    elif config.algorithm.online and config.rollout.engine == "vllm":
        settings = engine_settings(config, str(model.path))
        device = "cuda" if found.machine.gpus else "cpu"
        if (anywhere := unsupported_reason(described, settings, "cuda")) is not None:
            found.wrong.append(Problem("rollout.tensor_parallel", anywhere))
        elif (here := unsupported_reason(described, settings, device)) is not None:
            found.cannot_run.append(Problem("model.path", here))


def _adapter_problems(config: Config, path: Path) -> Iterator[Problem]:
    lora = config.model.lora
    if lora is None or lora.targets == "all-linear":
        return
    from actors.models.adapters import missing_targets

    for target, layers in missing_targets(str(path), lora.targets).items():
        wrong = f"the model has no linear layer named {target}; its layers' names end in {', '.join(layers)}"
        yield Problem("model.lora.targets", wrong)


def _report_missing(found: Examination, path: str, model: FoundModel) -> None:
    if model.wrong:
        found.wrong.append(Problem(path, model.reason))
    elif model.path is None:
        found.cannot_run.append(Problem(path, model.reason))
    elif model.reason:
        found.notes.append(f"{path}: {model.reason}")


def _plan(found: Examination, run_dir: Path | None) -> None:
    """Placement, memory and disk, here and as GPUs would run it."""
    config, machine = found.config, found.machine
    here = config.ray.address == "local"
    unreachable = unreachable_reason(config.ray.address, os.environ)
    if unreachable:
        found.cannot_run.append(Problem("ray.address", unreachable))
    everywhere = plan(config, machine.cpus, float("inf"))
    found.gpus_needed = everywhere.gpus
    # On a cluster its own nodes count, not this one: the plan is for its GPUs.
    found.placement = plan(config, machine.cpus, float(len(machine.gpus))) if here else everywhere
    if here and (lacking := shortage(found.placement, len(machine.gpus))):
        found.cannot_run.append(Problem("placement", lacking))
    if here and (lacking := hardware_lacks(config, found.placement.device)):
        found.cannot_run.append(Problem("placement", lacking))
    critic, rewards = _other_models(found)
    if found.facts is None:
        found.notes.append(f"model.path: nothing tells how large {config.model.path} is, so memory is not planned")
        return
    found.memory = plan_memory(config, found.facts, critic, rewards, found.placement)
    found.gpu_bytes = gpu_bytes_needed(config, plan_memory(config, found.facts, critic, rewards, everywhere))
    if here:
        found.cannot_run += memory_problems(config, machine, found.memory, found.gpu_bytes)
        if not machine.gpus and machine.available < found.memory.total <= machine.memory:
            needed, free = found.memory.total / GIB, machine.available / GIB
            found.notes.append(f"memory: the plan needs about {needed:.1f} GB and {free:.1f} GB are free now")
    if config.algorithm.online and found.placement.device == "cpu":
        found.wrong += cache_problems(config, found.facts)
    if run_dir is not None and here:
        found.cannot_run += disk_problems(config, found.facts, critic, run_dir)


def _other_models(found: Examination) -> tuple[ModelFacts | None, list[ModelFacts | None]]:
    """The critic's and the reward models' facts; what is wrong with them is noted."""
    config, critic = found.config, None
    if config.critic is not None:
        critic = found.facts
        if config.critic.path is not None:
            model = find_model(config.critic.path)
            _report_missing(found, "critic.path", model)
            critic = facts_of(model)
        layers = config.critic.layers
        if critic and critic.layers and layers is not None and layers > critic.layers:
            found.wrong.append(Problem("critic.layers", f"must be at most the model's {critic.layers}, got {layers}"))
    rewards = []
    for path, reference, scored_by in _scoring_models(config):
        model = find_model(reference)
        _report_missing(found, path, model)
        rewards.append(facts_of(model))
        if model.path is not None and isinstance(scored_by, RewardModel):
            described = read_model_config(str(model.path))
            if not _classifies(described):
                wrong = f"{reference} has no score head; train one with algorithm: reward_model"
                found.wrong.append(Problem(path, wrong))
            elif (labels := _labels(described)) != 1:
                wrong = f"a reward model has one label, {reference} has {labels}; export it with num_labels 1"
                found.wrong.append(Problem(path, wrong))
    return critic, rewards


def _scoring_models(config: Config) -> Iterator[tuple[str, str, RewardModel | Judge]]:
    """(key, path, settings) of every model that scores samples: rewards, costs, judges."""
    reward = config.reward
    yield from ((f"reward.models.{name}.path", model.path, model) for name, model in reward.models.items())
    if reward.safety is not None:
        costs = reward.safety.models
        yield from ((f"reward.safety.models.{name}.path", model.path, model) for name, model in costs.items())
    for name, judge in reward.judges.items():
        if judge.path:
            yield f"reward.judges.{name}.path", judge.path, judge


def _classifies(described: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model with a score head."""
    return any("SequenceClassification" in name for name in described.get("architectures") or ())


def _labels(described: Mapping[str, Any]) -> int:
    """How many labels a classifier's config.json gives it; two where it says nothing, as transformers has it."""
    return int(described.get("num_labels") or len(described.get("id2label", {"0": "", "1": ""})))


def _look_at_inputs(found: Examination, model: FoundModel) -> None:
    if model.path is None:
        _note_source(found, first_row_problems(found.config))
        found.notes.append("data and rewards: not tried, for the model's tokenizer is not here")
        return
    try:
        found.tokenizer = load_tokenizer(found.config, model.path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        found.wrong.append(
            Problem("model.path", f"its tokenizer cannot be loaded ({reason}); add the tokenizer's files")
        )
        return
    vocabulary = found.facts.vocabulary if found.facts is not None else 0
    if vocabulary and len(found.tokenizer) > vocabulary:
        found.wrong.append(
            Problem(
                "model.path",
                f"the tokenizer has {len(found.tokenizer)} tokens and the model {vocabulary}; "
                "they belong to different models",
            )
        )
    found.data, problems = look_at_data(found.config, found.tokenizer)
    _note_source(found, problems)


def _note_source(found: Examination, problems: list[Problem]) -> None:
    """A hub that does not answer is this machine's lack; every other problem of the data is the data's."""
    data = found.config.data
    hub = f"{data.path}[{data.split}]" if data.path is not None and is_hub_id(data.path) else None
    for problem in problems:
        (found.cannot_run if problem.path == hub else found.wrong).append(problem)
