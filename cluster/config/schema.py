"""The config schema: data only.

In: nothing. Out: pydantic models; a section is a class of at most a dozen keys, its docstrings are the reference.
Unknown keys are errors, nothing is coerced silently. The larger sections have files of their own
(cluster/config/sections). What needs two sections at once is in `cluster/config/rules/general.py`; reading YAML,
overrides and error text in `cluster/config/loading/load.py`; the page that is made of it all in
`cluster/config/reference`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cluster.config.sections.algorithm import Algorithm
from cluster.config.sections.data import Data
from cluster.config.sections.lora import Lora
from cluster.config.sections.optimizer import Optimizer, Zero
from cluster.config.sections.recovery import Recovery
from cluster.config.sections.reward import Reward
from cluster.config.sections.schedule import Autoscale, Schedule
from cluster.config.sections.section import Count, NonNegative, Positive, Seconds, Section, name_only


class Model(Section):
    """The policy to tune."""

    path: str
    """A Hugging Face directory, a hub id, or `package:NAME/FILE.gguf` for a model carried by a Python package."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of weights and forwards; log-probs, losses and master weights are float32 whatever it is."""
    max_length: Count = 1024
    """Window: prompt and response tokens together."""
    trust_remote_code: bool = False
    """Let a model's own Python code run, as transformers means it."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward instead of keeping them: less memory, more time."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Packed samples need `sdpa`; `eager` is refused."""
    lora: Lora | None = None
    """Train an adapter; default: the whole model."""


class Sampling(Section):
    """How responses are drawn while training."""

    temperature: Positive = 1.0
    """Divides the logits, in training as in sampling."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Draw from the most likely tokens that make up so much probability; 1 is all."""
    top_k: int = Field(default=0, ge=0)
    """Draw from so many of the most likely tokens; 0 is all."""
    max_tokens: Count = 128
    """The longest response; one that reaches it is truncated."""
    min_tokens: int = Field(default=0, ge=0)
    """End tokens are barred until a response has so many, in the learner's log-probs as in sampling."""
    stop: list[str] = []
    """Texts that end a response."""
    samples_per_prompt: Count = 1
    """Responses a prompt: its group."""


class Rollout(Section):
    """The rollout pool."""

    workers: Count = 1
    """Rollout workers at the start, each with an engine of its own."""
    engine: Literal["vllm", "torch"] = "vllm"
    """`torch` is the plain twin in transformers, slow and small."""
    tensor_parallel: Count = 1
    """GPUs an engine spans."""
    prompts_per_step: Count = 8
    """Prompts that a step learns from."""
    sampling: Sampling = Sampling()
    schedule: Schedule = Schedule()
    autoscale: Autoscale | None = None
    """Absent: as many as `workers`, until someone scales the run."""
    max_num_seqs: Count = 64
    """Sequences that an engine decodes at once."""
    kv_cache_gb: Positive = 1.0
    """On CPU. On a GPU the engine takes `gpu_memory_utilization` of it."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of a GPU's memory. Default: 0.85 of one of its own; of one that it shares with the learner what the memory
    plan leaves, as far as its sequences can fill it."""
    enforce_eager: bool = True
    """Decode without CUDA graphs: the engine starts sooner and is slower."""
    sleep_level: Literal[0, 1, 2] = 0
    """What engines give up while a learner on their GPU works: 1 the cache, with the weights moved to host memory; 2
    both, and the next publish brings the weights."""
    threads: int = Field(default=0, ge=0)
    """CPU threads a worker; 0 divides the machine among the workers that run at once."""
    stall_timeout_s: Seconds = 120.0
    """A worker without a new token for so long is stuck."""
    timeout_s: Seconds = 3600.0
    """The longest a whole generation may take."""


class Learner(Section):
    """The policy's learner group."""

    backend: Literal["deepspeed", "torch"] = "deepspeed"
    """`torch` is the plain twin: one rank without ZeRO."""
    ranks: Count = 1
    """Processes that train together, each on a GPU where there are GPUs."""
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
    """CPU threads a rank; 0 divides the machine among the ranks."""
    update_timeout_s: Seconds = 3600.0
    """The longest a call of the learner may take; past it the group is built again."""
    max_nonfinite_steps: Count = 3
    """Steps in a row whose loss or gradient is not finite, after which the run ends."""


class Critic(Section):
    """PPO's value model: the policy's architecture with a scalar head that starts at zero."""

    path: str | None = None
    """Initial weights; default: the policy's."""
    layers: Count | None = None
    """Keep only the first layers of the trunk: a cheaper critic."""
    zero: Zero = Zero()
    optimizer: Optimizer = Optimizer(lr=1e-5)
    value_clip: Positive | None = 0.2
    """How far a value may move from the old one before its loss is clipped; null: not clipped."""


class Evaluation(Section):
    """Held-out prompts, while training and at its end."""

    every_steps: int = Field(default=0, ge=0)
    """0: only before the first and after the last step."""
    temperature: NonNegative = 0.0
    """0 is greedy."""
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
    """Steps from one commit to the next; the last step commits too."""
    keep_last: Count = 2
    """Checkpoints that stay, the newest."""
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
    """The longest the workers may take to start."""
    on_demand: Literal["cpu", "cuda"] | None = None
    """The cluster has an autoscaler that brings such nodes: what does not fit is asked for, not refused."""


class Weights(Section):
    """Publishing the policy to the engines."""

    transport: Literal["auto", "object_store", "sparse_delta", "collective", "cuda_ipc"] = "auto"
    """How weights travel: through Ray's object store, as changes to the last version (slow links), by one broadcast
    (NCCL between GPUs), or not at all where learner and engine share a GPU."""
    bucket_mb: Positive = 32.0
    """Megabytes of parameters that are gathered and sent at a time."""
    probe_samples: Count = 8
    """Recorded responses on which engine and learner must agree."""
    timeout_s: Seconds = 600.0
    """The longest a publish may take."""
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
    """The run's name; its directory is `runs/NAME` unless `--run-dir` says otherwise."""
    seed: int = 0
    """Of the order of prompts, of sampling and of what starts at random."""
    steps: Count = 100
    """Training steps in all."""
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
