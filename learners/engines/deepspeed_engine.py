"""The train engine on DeepSpeed, ZeRO stages 0-3: the only file that imports deepspeed.

In: any module (a Hugging Face causal LM, or a trunk with a value head), ZeRO and optimiser settings, an initialised
process group (`process_group.init_process_group`, also for one rank). Out: a TrainEngine. DeepSpeed shards, reduces and
steps; what to sum, when to skip, how to clip, the schedule and the files on disk are ours, so that every stage and the
plain twin mean the same. DeepSpeed averages gradients over ranks: the loss is multiplied by the world size to undo it.

Left out: NVMe offload, loss scaling (bfloat16 and float32 need none), DeepSpeed's own checkpoints (pickle).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from learners.engines import training_state
from learners.engines.interface import StepResult
from learners.engines.optimizer import (
    MasterAdamW,
    NamedParameter,
    adamw,
    check_settings,
    clip_factor,
    parameter_groups,
    scale_gradients,
    set_learning_rates,
    squared_norm,
)
from learners.engines.saving import Write, write_now
from learners.engines.settings import OptimizerSettings, ZeroSettings
from learners.engines.share_layout import Layout
from learners.engines.torch_engine import DTYPES, enable_gradient_checkpointing, in_buckets
from learners.engines.zero_shards import Bfloat16Stage1Shards, ReplicatedShards, Shards, Stage3Shards, Stage12Shards

BUCKET_ELEMENTS = 1 << 25
"""Elements that one reduce or gather moves at most: 128 MiB in float32, allocated once."""
PERSISTENT_ELEMENTS = 10_000
"""In stage 3 parameters up to this size (norms, biases) stay whole on every rank: gathering them costs more."""


def check_zero(zero: ZeroSettings) -> None:
    """ValueError, in one sentence, for what this engine cannot do."""
    if zero.stage not in (0, 1, 2, 3):
        raise ValueError(f"zero.stage must be 0, 1, 2 or 3, got {zero.stage}")
    for name, device in (
        ("offload_optimizer", zero.offload_optimizer),
        ("offload_parameters", zero.offload_parameters),
    ):
        if device not in ("none", "cpu"):
            raise ValueError(f"zero.{name} must be none or cpu, got {device}: this engine keeps its state in memory")
    if zero.offload_optimizer != "none" and zero.stage == 0:
        raise ValueError("zero.offload_optimizer needs zero.stage 1, 2 or 3: stage 0 does not shard the optimiser")
    if zero.offload_parameters != "none" and zero.stage != 3:
        raise ValueError(f"zero.offload_parameters needs zero.stage 3, got stage {zero.stage}")


def deepspeed_config(zero: ZeroSettings, dtype: str) -> dict[str, object]:
    """DeepSpeed's configuration. Stage 0 is a plain float32-mode engine over our own AdamW with masters, because
    DeepSpeed has no stage 0 that accumulates bfloat16 gradients in float32."""
    sections: dict[str, object] = {"stage": zero.stage}
    if zero.stage:
        sections |= {"reduce_bucket_size": BUCKET_ELEMENTS, "allgather_bucket_size": BUCKET_ELEMENTS}
        pinned = get_accelerator().device_name() != "cpu"
        if zero.offload_optimizer == "cpu":
            sections["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
        if zero.offload_parameters == "cpu":
            sections["offload_param"] = {"device": "cpu", "pin_memory": pinned}
    if zero.stage == 3:
        sections |= {
            "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
        }
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": dtype == "bfloat16" and zero.stage > 0},
        "zero_optimization": sections,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},
    }


@contextmanager
def construction_context(zero: ZeroSettings, dtype: str) -> Iterator[None]:
    """Build a model for this engine inside it. In stage 3 `from_pretrained` and `from_config` then shard each
    parameter as it is made, so no rank ever holds the whole model; other stages need nothing. Modules built plainly
    are sharded when the engine is made."""
    if zero.stage != 3:
        yield
        return
    held = HfDeepSpeedConfig(deepspeed_config(zero, dtype))  # transformers keeps a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del held


# With a compiler at hand DeepSpeed builds a shared-memory all-reduce when its first engine starts, for minutes on two
# cores and again for every environment, and use it in inference only: its training goes through gloo either way.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

# DeepSpeed calls two functions by names that torch renamed, thousands of times a step; every other warning stays.
warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+_tensor` is deprecated", FutureWarning)


class DeepSpeedEngine:
    """See `learners.engines.interface.TrainEngine`. `module` is DeepSpeed's wrapper: call it whole, never a part of
    it."""

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        zero: ZeroSettings,
        optimizer: OptimizerSettings,
        dtype: str,
        device: torch.device,
        gradient_checkpointing: bool = False,
    ) -> None:
        check_settings(optimizer)
        check_zero(zero)
        if get_accelerator().device_name() != device.type:
            raise ValueError(
                f"DeepSpeed runs on {get_accelerator().device_name()} here but the engine was asked for {device}; "
                f"set DS_ACCELERATOR={device.type} in the process's environment"
            )
        self.device = device
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.steps = 0
        self._settings = optimizer
        self._zero = zero
        self._dtype = dtype
        for parameter in module.parameters():
            if not hasattr(parameter, "ds_id"):  # not sharded yet: a module may mix a sharded trunk and a plain head
                parameter.data = parameter.data.to(device, DTYPES[dtype])
        if gradient_checkpointing:
            enable_gradient_checkpointing(module)
        self._all = [NamedParameter(n, p, _whole_shape(p)) for n, p in module.named_parameters()]
        self._trainable = [p for p in self._all if p.parameter.requires_grad]
        self._adamw = (
            MasterAdamW(self._trainable, optimizer)
            if zero.stage == 0
            else adamw(parameter_groups(self._trainable, optimizer), optimizer)
        )
        # It prints memory tables; its warnings go through logging, which holds the real stdout, and stay visible.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            self._engine, built, _, _ = deepspeed.initialize(
                model=module, optimizer=self._adamw, config=deepspeed_config(zero, dtype)
            )
        # Stage 0 reduces in `backward`, in float32, and with zeros for parameters that took no part.
        self._engine.enable_backward_allreduce = zero.stage > 0
        self._shards = self._find_shards(built)
        self.module: torch.nn.Module = self._engine
        self._loss_finite = torch.ones((), dtype=torch.bool, device=device)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        self._loss_finite &= torch.isfinite(loss.detach()).all()
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)
        if last and self._zero.stage == 0 and self.world_size > 1:
            self._engine.buffered_allreduce_fallback(self._shards.gradients(), elements_per_buffer=BUCKET_ELEMENTS)

    def step(self) -> StepResult:
        gradients = self._shards.gradients()
        norm, losses_finite = self._agree(gradients)
        applied = losses_finite and math.isfinite(norm)
        lr = set_learning_rates(self._adamw.param_groups, self._settings, self.steps)
        if applied:
            scale_gradients(gradients, clip_factor(norm, self._settings.max_grad_norm))
            self._engine.step()
            self.steps += 1
        del gradients
        self._shards.drop_gradients()
        self._loss_finite.fill_(True)
        return StepResult(applied, norm, lr)

    def full_parameters(self, max_bytes: int, *, trained: bool = False) -> Iterator[list[tuple[str, torch.Tensor]]]:
        for bucket in in_buckets(self._trainable if trained else self._all, max_bytes, DTYPES[self._dtype].itemsize):
            if self._zero.stage < 3:
                yield [(p.name, p.parameter.detach()) for p in bucket]
                continue
            with deepspeed.zero.GatheredParameters([p.parameter for p in bucket]):
                whole = [(p.name, p.parameter.detach().clone()) for p in bucket]
            yield whole

    def save(self, directory: Path, write: Write = write_now) -> None:
        if self._share == self.rank:
            masters = self._shards.masters()
            training_state.write_tensors(directory, self._share, masters, self._adamw, self._layout(), write)
        if self.rank == 0:
            shares = self.world_size if self._zero.stage > 0 else 1
            training_state.write_facts(directory, self._facts(), self.steps, shares)
        dist.barrier()

    def load(self, directory: Path) -> None:
        masters = self._shards.masters()
        with self._all_or_none(directory):
            steps, saved = training_state.read_share(directory, self._facts(), self._share, self._layout(), masters)
        training_state.put_tensors(saved, masters, self._adamw)
        self._shards.write_back()
        self._shards.drop_gradients()
        self.steps = steps

    def close(self) -> None:
        self._engine.destroy()

    def _agree(self, gradients: list[torch.Tensor]) -> tuple[float, bool]:
        """The global gradient norm, and whether every loss on every rank was finite: one small all-reduce."""
        mine = self._shards.partitioned or self.rank == 0
        square = squared_norm(gradients if mine else [], self.device)
        verdict = torch.stack([square, (~self._loss_finite).to(torch.float64)])
        dist.all_reduce(verdict)
        total, bad_losses = verdict.tolist()
        return math.sqrt(total) if total >= 0 else math.nan, bad_losses == 0

    @contextmanager
    def _all_or_none(self, directory: Path) -> Iterator[None]:
        """A ValueError on one rank becomes one on all: else the others would wait for it in the next collective."""
        error: ValueError | None = None
        try:
            yield
        except ValueError as caught:
            error = caught
        failed = torch.tensor(float(error is not None), device=self.device)
        dist.all_reduce(failed)
        if error is not None:
            raise error
        if failed.item() > 0:
            raise ValueError(f"another rank cannot load its part of {directory}; its own message says why")

    def _find_shards(self, built: object) -> Shards:
        if isinstance(self._adamw, MasterAdamW):  # stage 0's
            return ReplicatedShards(self._adamw)
        if isinstance(built, BF16_Optimizer):
            return Bfloat16Stage1Shards(built)
        return Stage3Shards(built) if self._zero.stage == 3 else Stage12Shards(built)

    @property
    def _share(self) -> int:
        """Which share of the state this rank holds; without ZeRO all hold the only one."""
        return self.rank if self._zero.stage > 0 else 0

    def _layout(self) -> Layout:
        return self._shards.layout({p.parameter: p.name for p in self._trainable}, self.rank)

    def _facts(self) -> dict[str, object]:
        return {
            "engine": "deepspeed",
            "model": training_state.model_digest((p.name, p.shape) for p in self._trainable),
            "dtype": self._dtype,
            "world_size": self.world_size,
            "zero_stage": self._zero.stage,
        }


def _whole_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """A parameter that ZeRO-3 already sharded looks empty; its whole shape stands beside it."""
    return tuple(parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape)
