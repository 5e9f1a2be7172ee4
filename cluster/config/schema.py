"""The config schema: data only.

In: nothing. Out: pydantic models; a section is a class of at most a dozen keys, its docstrings are the reference.
Unknown keys are errors, nothing is coerced silently. The method and the rewards have files of their own
(cluster/config/sections/algorithm.py, cluster/config/sections/reward.py). What needs two sections at once is in
`cluster/config/rules/general.py`; reading YAML, overrides and error text in `cluster/config/loading/load.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cluster.config.sections.algorithm import Algorithm
from cluster.config.sections.lora import Lora
from cluster.config.sections.recovery import Recovery
from cluster.config.sections.reward import Reward
from cluster.config.sections.schedule import Autoscale, Schedule
from cluster.config.sections.section import Count, Fraction, NonNegative, Positive, Seconds, Section, name_only


class Model(Section):
    """The policy to tune."""

    path: str
    """A Hugging Face directory, a hub id, or `package:NAME/FILE.gguf` for a model carried by a Python package."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_length: Count = 1024
    """Window: prompt and response tokens together."""
    trust_remote_code: bool = False
    gradient_checkpointing: bool = False
    attention: Literal["sdpa", "eager"] = "sdpa"
    lora: Lora | None = None
    """Train an adapter; default: the whole model."""


class ReasoningGym(Section):
    """A task of `reasoning_gym` by name, with its own parameters."""

    task: str
    params: dict[str, Any] = {}
    size: Count = 10_000
    seed: int = 0
    answer_format: str | list[str] | None = None
    """How demonstrations and pairs say an answer, with {answer} and the names of an entry's metadata ({expression} of
    chain_sum); several take turns. Default: demonstrations bare, pairs "The answer is {answer}."."""
    rejected_format: str | None = None
    """Of pairs: the rejected side says the right answer so, and the pair is about form. Default: as the chosen side,
    with a wrong answer."""


class Labels(Section):
    """What people said of stored responses."""

    column: str | None = None
    """Rows are single judged responses (completion_column) with this label: true or false for kto, a number for
    reward_model. None: rows are pairs (`chosen`, `rejected`)."""
    range: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """Least and greatest rating; one outside is a bad row."""
    margin_column: str | None = None
    """Of pairs: by how much chosen is better (reward_model)."""


class Data(Section):
    """Prompts (or preference pairs), one of `path` and `reasoning_gym`."""

    path: str | None = None
    """JSONL or Parquet file, a `datasets` directory, or a hub id."""
    split: str = "train"
    subset: str | None = None
    """Which of a hub data set's configurations, where it has several."""
    reasoning_gym: ReasoningGym | None = None
    prompt_column: str = "prompt"
    messages_column: str | None = None
    completion_column: str = "completion"
    """Of demonstrations (sft) and judged responses: what the assistant says to the prompt."""
    labels: Labels = Labels()
    system_prompt: str | None = None
    suffix: str = ""
    """Appended to each prompt's text, e.g. an answer format."""
    shuffle: bool = True
    heldout: int = Field(default=0, ge=0)
    """Rows kept for evaluation, disjoint from training by prompt text."""
    skip_invalid: int = Field(default=0, ge=0)
    """Invalid rows tolerated (skipped and counted); 0 is strict."""
    overlong: Literal["refuse", "truncate_left", "drop"] = "refuse"


class Sampling(Section):
    """How responses are drawn while training."""

    temperature: Positive = 1.0
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    max_tokens: Count = 128
    min_tokens: int = Field(default=0, ge=0)
    """End tokens are barred until a response has so many, in the learner's log-probs as in sampling."""
    stop: list[str] = []
    samples_per_prompt: Count = 1


class Rollout(Section):
    """The rollout pool."""

    workers: Count = 1
    engine: Literal["vllm", "torch"] = "vllm"
    tensor_parallel: Count = 1
    prompts_per_step: Count = 8
    sampling: Sampling = Sampling()
    schedule: Schedule = Schedule()
    autoscale: Autoscale | None = None
    """None: as many as `workers`, until someone scales the run."""
    max_num_seqs: Count = 64
    kv_cache_gb: Positive = 1.0
    """On CPU. On a GPU the engine takes `gpu_memory_utilization` of it."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of a GPU's memory. Default: 0.85 of one of its own; of one that it shares with the learner what the memory
    plan leaves, as far as its sequences can fill it."""
    enforce_eager: bool = True
    sleep_level: Literal[0, 1, 2] = 0
    """What engines give up while a learner on their GPU works: 1 the cache, with the weights moved to host memory; 2
    both, and the next publish brings the weights."""
    threads: int = Field(default=0, ge=0)
    """CPU threads a worker; 0 divides the machine among the workers that run at once."""
    stall_timeout_s: Seconds = 120.0
    """A worker without a new token for so long is stuck."""
    timeout_s: Seconds = 3600.0
    """The longest a whole generation may take."""


class Zero(Section):
    """DeepSpeed ZeRO."""

    stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    nvme_path: str | None = None


class Optimizer(Section):
    """AdamW with warm-up and a schedule."""

    lr: NonNegative = 1e-6
    head_lr: Positive | None = None
    """Critic and reward model: learning rate of the head (default: lr)."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    min_lr_ratio: Fraction = 0.0
    freeze_steps: int = Field(default=0, ge=0)
    """Hold the parameters for the first steps (the policy's, while the critic warms up)."""


class Learner(Section):
    """The policy's learner group."""

    backend: Literal["deepspeed", "torch"] = "deepspeed"
    ranks: Count = 1
    gpus_per_rank: NonNegative | None = None
    """Share of a GPU a rank takes where there are GPUs; below 1 it shares with a rollout worker. Default: a whole one,
    and where there are too few of them a share."""
    zero: Zero = Zero()
    optimizer: Optimizer = Optimizer()
    minibatches: Count = 1
    """Optimiser steps a batch of samples is cut into."""
    epochs: Count = 1
    """Passes over each batch of samples."""
    micro_batch_tokens: Count = 1024
    """Tokens a forward takes; more memory, fewer passes. Changes no gradient."""
    threads: int = Field(default=0, ge=0)
    update_timeout_s: Seconds = 3600.0
    max_nonfinite_steps: Count = 3


class Critic(Section):
    """PPO's value model: the policy's architecture with a scalar head that starts at zero."""

    path: str | None = None
    """Initial weights; default: the policy's."""
    layers: Count | None = None
    """Keep only the first layers of the trunk: a cheaper critic."""
    zero: Zero = Zero()
    optimizer: Optimizer = Optimizer(lr=1e-5)
    value_clip: Positive | None = 0.2


class Evaluation(Section):
    """Held-out prompts, while training and at its end."""

    every_steps: int = Field(default=0, ge=0)
    """0: only before the first and after the last step."""
    temperature: NonNegative = 0.0
    max_tokens: Count | None = None
    """Default: the training limit."""
    metric: str = "reward"
    """What decides the best checkpoint: `reward` or a reward function's name."""
    prompts: int | None = Field(default=None, ge=1)
    """At most so many held-out prompts; default all."""
    patience: Count | None = None
    """Stop after so many evaluations without a better one."""
    kl_bound: Positive | None = None
    """Stop when `kl/ref_k1` (k1 of the policy to the reference, mean over the batch's tokens, in nats) exceeds this."""


class Checkpoint(Section):
    """When the run commits, and what it keeps."""

    every_steps: Count = 10
    keep_last: Count = 2
    keep_best: bool = True
    """The checkpoint of the best evaluation too, whatever its age."""
    asynchronous: bool | None = None
    """Copy the learner's state and write it while training goes on; default: on GPUs, whose hosts have the memory."""
    export: bool = True
    """Write the tuned policy as a Hugging Face directory at the end, and at every evaluation that is the best so far;
    those that were the best before are removed."""


class RaySection(Section):
    """Where the run executes."""

    address: str = "local"
    """`local` starts Ray here; `auto` or `host:port` attaches."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of a local Ray; default: enough for every role."""
    start_timeout_s: Seconds = 600.0
    on_demand: Literal["cpu", "cuda"] | None = None
    """The cluster has an autoscaler that brings such nodes: what does not fit is asked for, not refused."""


class Weights(Section):
    """Publishing the policy to the engines."""

    transport: Literal["auto", "object_store", "sparse_delta", "collective", "cuda_ipc"] = "auto"
    """How weights travel: through Ray's object store, as changes to the last version (slow links), by one broadcast
    (NCCL between GPUs), or not at all where learner and engine share a GPU."""
    bucket_mb: Positive = 32.0
    probe_samples: Count = 8
    """Recorded responses on which engine and learner must agree."""
    timeout_s: Seconds = 600.0
    mismatch_factor: float = Field(default=2.0, ge=1.0)
    """Bound of the mismatch, in multiples of a freshly loaded engine's."""


class Tracking(Section):
    """Where metrics go besides the run directory and TensorBoard."""

    wandb: dict[str, Any] | None = None
    """Arguments of `wandb.init`."""
    mlflow: dict[str, Any] | None = None
    """`tracking_uri` and `experiment`."""
    samples_per_step: int = Field(default=16, ge=0)
    """Samples written to Parquet each step."""


class Config(Section):
    """One run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = 0
    steps: Count = 100
    deterministic: bool = False
    """A resumed run equals an uninterrupted one bit for bit."""
    algorithm: Annotated[Algorithm, BeforeValidator(name_only)]
    model: Model
    data: Data
    reward: Reward = Reward()
    rollout: Rollout = Rollout()
    learner: Learner = Learner()
    critic: Critic | None = None
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    weights: Weights = Weights()
    recovery: Recovery = Recovery()
    ray: RaySection = RaySection()
    tracking: Tracking = Tracking()

    @property
    def row_kind(self) -> Literal["pairs", "responses", "conversations", "prompts"]:
        """What a row of the data is."""
        if self.algorithm.online:
            return "prompts"
        if self.algorithm.name == "sft":
            return "conversations"
        return "pairs" if self.data.labels.column is None else "responses"

    @property
    def rows_per_step(self) -> int:
        """Stored rows that a step takes."""
        algorithm = self.algorithm
        if algorithm.on_preferences:
            return algorithm.preference.pairs_per_step
        return algorithm.sft.rows_per_step if algorithm.name == "sft" else algorithm.reward_model.rows_per_step
