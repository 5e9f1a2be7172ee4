"""The memory plan: what each role's process will hold, in bytes, from sizes alone. Pure.

In: a Config, the models' facts, a Placement. Out: `RoleMemory` per role, and what that asks of a machine or each GPU.
Weights, gradients and optimiser state follow from the code (float32 gradients, masters and two moments); activations,
logits and runtimes are estimates and say so. Left out: fragmentation, and what the machine has (machine.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.config.placement import Placement
from cluster.config.resolve import gpu_memory_utilization, needs_reference, own_critic, saves_later
from cluster.config.schema import Config
from cluster.config.sections.optimizer import Zero
from cluster.inspect.model import ModelFacts

BYTES = {"bfloat16": 2, "float32": 4}
RUNTIME = {"learner": 600 << 20, "rollout": 900 << 20, "scorer": 400 << 20}
"""Resident bytes of a process with its imports, before any model (learner: torch, DeepSpeed; rollout: vLLM)."""
GPU_CONTEXT = 600 << 20
WORK_SPACE = 3 << 29
"""Of an engine on each of its GPUs: activations of its largest batch, what the sampler sorts, captured graphs."""
SLACK = 0.05
"""Share of a GPU that is left free where the plan divides it between learner and engine: for what is estimated here."""
CACHE_BLOCK = 16
"""Tokens of a block of an engine's cache on a GPU."""
DRIVER = 1 << 30
"""Driver, supervisor and Ray's own processes on the head node."""
LAST_VERSION = "last version"
"""What both ends of a sparse delta keep: the weights that the next change is told against."""
UPDATE_PARTS = ("activations", "logits")
"""Held while the learner computes, and given back between."""
CHECKPOINT_COPY = "checkpoint copy"
HOST_PARTS = ("runtime", "offloaded state", LAST_VERSION, CHECKPOINT_COPY)


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """parts: bytes by what holds them, of one of the `count` processes. Parts named in HOST_PARTS stay in host memory
    when the role runs on a GPU; known is False where only a model's name tells its size."""

    role: str
    count: int
    parts: Mapping[str, int]
    known: bool = True

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def on_device(self) -> int:
        return sum(size for part, size in self.parts.items() if part not in HOST_PARTS)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """shared: bytes in the object store: two versions of what is published, of which one is being replaced; one more
    where changes travel, which may be as large. colocated: a learner rank and an engine are on one GPU."""

    roles: tuple[RoleMemory, ...]
    shared: int
    colocated: bool = False

    @property
    def total(self) -> int:
        """Bytes of host memory when everything runs on CPU."""
        return DRIVER + self.shared + sum(role.count * role.bytes for role in self.roles)

    def role(self, name: str) -> RoleMemory:
        return next(role for role in self.roles if role.role == name)


def plan_memory(
    config: Config,
    policy: ModelFacts,
    critic: ModelFacts | None,
    reward_models: Sequence[ModelFacts | None],
    placement: Placement,
) -> MemoryPlan:
    roles = [_learner(config, policy, critic, saves_later(config, placement.device))]
    element = BYTES[config.model.dtype]
    if config.algorithm.online:
        roles.append(_rollout(config, policy, placement.device))
        models = sum(facts.parameters * 2 for facts in reward_models if facts)  # scorers hold bfloat16
        parts = {"runtime": RUNTIME["scorer"], **({"reward models": models} if models else {})}
        roles.append(RoleMemory("scorer", config.reward.processes, parts, all(reward_models)))
    versions = 3 if config.weights.transport == "sparse_delta" else 2
    return MemoryPlan(tuple(roles), versions * tuned_parameters(config, policy) * element, placement.colocated)


def _learner(config: Config, policy: ModelFacts, critic: ModelFacts | None, saves_later: bool) -> RoleMemory:
    """One rank: policy, critic where there is one, and the frozen reference, whole on each rank. An adapter stands
    beside its base, which has no gradients and is the reference itself."""
    ranks, element = config.learner.ranks, BYTES[config.model.dtype]
    zero, tuned = config.learner.zero, tuned_parameters(config, policy)
    parts = _trained(tuned, zero, ranks, element)
    if tuned != policy.parameters:
        place = "offloaded state" if zero.offload_parameters == "cpu" else "weights"
        base = policy.parameters * element // (ranks if zero.stage == 3 else 1)
        parts[place] = parts.get(place, 0) + base
    saved = _saved(tuned, zero, ranks)
    if critic is not None:
        zero = own_critic(config).zero
        saved += _saved(critic_parameters(config, critic), zero, ranks)
        for part, size in _trained(critic_parameters(config, critic), zero, ranks, element).items():
            parts[part] = parts.get(part, 0) + size
    if needs_reference(config):
        parts["reference"] = policy.parameters * element
    parts |= _transport(config, policy, element, copies_on_device=1)
    if saves_later:
        parts[CHECKPOINT_COPY] = saved
    known = policy.layers > 0
    if known:
        tokens = config.learner.micro_batch_tokens
        parts["activations"] = tokens * _activations_per_token(config, policy, element)
        if config.algorithm.name != "reward_model":  # its head makes one number a row
            parts["logits"] = 2 * tokens * policy.vocabulary * element
    parts["runtime"] = RUNTIME["learner"]
    return RoleMemory("learner", ranks, parts, known)


def tuned_parameters(config: Config, facts: ModelFacts) -> int:
    """How many of the policy's (or reward model's) parameters are trained and published: all, or an adapter's. Where
    only the model's name is known an adapter counts as a fiftieth, more than rank 16 has in models of 1B and up."""
    lora = config.model.lora
    if lora is None:
        return facts.parameters
    if not facts.layers:
        return facts.parameters // 50
    attention, keys = facts.hidden + facts.heads * facts.head_dim, facts.hidden + facts.kv_heads * facts.head_dim
    feed_forward = facts.hidden + facts.intermediate
    sizes = {"q_proj": attention, "k_proj": keys, "v_proj": keys, "o_proj": attention}
    sizes |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), feed_forward)
    targets = sizes if lora.targets == "all-linear" else {target.rpartition(".")[2] for target in lora.targets}
    return facts.layers * lora.rank * sum(sizes.get(target, feed_forward) for target in targets)


def _trained(parameters: int, zero: Zero, ranks: int, element: int) -> dict[str, int]:
    """Bytes a rank holds of a model in training. Masters only where the weights are not float32 already."""
    state = parameters * (8 + (4 if element < 4 else 0)) // (ranks if zero.stage >= 1 else 1)
    weights = parameters * element // (ranks if zero.stage == 3 else 1)
    parts = {
        "weights": 0 if zero.offload_parameters == "cpu" else weights,
        "gradients": parameters * 4 // (ranks if zero.stage >= 2 else 1),
        "optimiser": 0 if zero.offload_optimizer == "cpu" else state,
        "offloaded state": (weights if zero.offload_parameters == "cpu" else 0)
        + (state if zero.offload_optimizer == "cpu" else 0),
    }
    return {part: size for part, size in parts.items() if size}


def _saved(parameters: int, zero: Zero, ranks: int) -> int:
    """Bytes of a rank's share of masters and moments, copied so that training may go on while they are written."""
    return parameters * 12 // (ranks if zero.stage >= 1 else 1)


def _activations_per_token(config: Config, facts: ModelFacts, element: int) -> int:
    """Bytes kept for the backward. A layer keeps its inputs, norms, projections and the gated feed-forward's factors;
    with checkpointing its input alone, and one layer is rebuilt at a time."""
    layer = (8 * facts.hidden + 2 * facts.kv_heads * facts.head_dim + 4 * facts.intermediate) * element
    if config.model.gradient_checkpointing:
        return facts.layers * facts.hidden * element + layer
    return facts.layers * layer


def critic_parameters(config: Config, facts: ModelFacts) -> int:
    """The trunk, without an output head; its first `critic.layers` where that is set."""
    kept = own_critic(config).layers
    if not facts.layers or kept is None:
        return facts.parameters
    trunk = facts.parameters - facts.embedding_parameters
    return facts.embedding_parameters + trunk * min(kept, facts.layers) // facts.layers


def kv_bytes_per_token(facts: ModelFacts, dtype: str) -> int:
    return 2 * facts.layers * facts.kv_heads * facts.head_dim * BYTES[dtype]


def sequence_bytes(config: Config, facts: ModelFacts) -> int:
    """The cache of one sequence of the whole window on a GPU, in whole blocks: it may have one token more, and one
    block is the engine's own."""
    blocks = config.model.max_length // CACHE_BLOCK + 2
    return blocks * CACHE_BLOCK * kv_bytes_per_token(facts, config.model.dtype)


def _rollout(config: Config, facts: ModelFacts, device: str) -> RoleMemory:
    """One worker, all of its devices together. On a GPU its cache takes what is left of the engine's part; here it
    counts as what one sequence of the whole window takes, the least that runs."""
    rollout, element = config.rollout, BYTES[config.model.dtype]
    adapter = tuned_parameters(config, facts) if config.model.lora is not None else 0
    parts = {"weights": (facts.parameters + adapter) * element}
    if device == "cpu":
        parts["kv cache"] = int(rollout.kv_cache_gb * (1 << 30))
    elif facts.layers:
        parts["kv cache"] = sequence_bytes(config, facts)
    if facts.layers:
        parts["logits"] = rollout.max_num_seqs * facts.vocabulary * 4
    parts |= _transport(config, facts, element, copies_on_device=0)
    parts["runtime"] = RUNTIME["rollout"]
    return RoleMemory("rollout", rollout.workers + config.recovery.spares, parts, facts.layers > 0)


def _transport(config: Config, policy: ModelFacts, element: int, copies_on_device: int) -> dict[str, int]:
    """Bytes that one end of the weights' transport keeps."""
    if not config.algorithm.online:
        return {}
    size = tuned_parameters(config, policy) * element
    if config.weights.transport == "sparse_delta":
        return {LAST_VERSION: size}
    kept = copies_on_device * size if config.weights.transport == "cuda_ipc" else 0
    return {"published weights": kept} if kept else {}


def gpu_bytes_needed(config: Config, plan: MemoryPlan) -> int:
    """The least memory of each GPU for this plan. One that learner and engine share is divided as
    rollout.gpu_memory_utilization says, or as they need; where engines sleep they take turns."""
    learner = plan.role("learner").on_device + GPU_CONTEXT
    if not config.algorithm.online:
        return learner
    use = config.rollout.gpu_memory_utilization
    engine = plan.role("rollout").on_device // config.rollout.tensor_parallel + GPU_CONTEXT + WORK_SPACE
    if not plan.colocated:
        return round(max(learner, engine / gpu_memory_utilization(config)))
    beside, turn = learner_beside_engine(config, plan), learner + GPU_CONTEXT * bool(config.rollout.sleep_level)
    if use is None:
        return round(max(beside + engine, turn) / (1 - SLACK))
    return round(max(turn, beside / (1 - use), engine / use))


def learner_beside_engine(config: Config, plan: MemoryPlan) -> int:
    """Bytes that a rank keeps on its GPU while an engine there works. Engines that sleep work between two updates."""
    parts = plan.role("learner").parts
    given_back = sum(parts.get(part, 0) for part in UPDATE_PARTS) if config.rollout.sleep_level else 0
    return plan.role("learner").on_device + GPU_CONTEXT - given_back


def checkpoint_bytes(config: Config, policy: ModelFacts, critic: ModelFacts | None) -> int:
    """Bytes the run directory takes at most: checkpoints kept and one being written, and two exported policies."""
    trained = tuned_parameters(config, policy) + (critic_parameters(config, critic) if critic else 0)
    kept = config.checkpoint.keep_last + int(config.checkpoint.keep_best) + 1
    lora = config.model.lora
    exported = tuned_parameters(config, policy) if lora is not None and lora.export == "adapter" else policy.parameters
    exports = 2 * exported * BYTES[config.model.dtype] if config.checkpoint.export else 0
    return kept * trained * 12 + exports
