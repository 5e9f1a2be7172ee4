"""Where each ZeRO stage keeps this rank's share of gradients, master weights and moments.

In: the optimiser that DeepSpeed built and the AdamW inside it. Out: one small interface over the four layouts, so that
the engine can take the global norm before anything moves, clip, drop a bad step, save or restore a share bit for bit,
and say what of which parameter it holds. It reads DeepSpeed's own attributes, pinned to its version; the contract tests
fail if they move.

Left out: importing DeepSpeed (deepspeed_engine does), NVMe offload (its shares are not in memory between steps).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch

from learners.engines.optimizer import MasterAdamW
from learners.engines.share_layout import Layout, slices, whole, window

Names = Mapping[torch.nn.Parameter, str]
T = TypeVar("T")


class Shards(Protocol):
    """This rank's share. Gradients are summed over ranks and micro-batches when `gradients` is called."""

    partitioned: bool
    """Whether ranks hold different gradients (their squared norms add up) or each holds all."""

    def gradients(self) -> list[torch.Tensor]: ...

    def masters(self) -> dict[str, torch.Tensor]: ...

    def layout(self, names: Names, rank: int) -> Layout:
        """What of which parameter the masters of this rank are."""

    def write_back(self) -> None:
        """Make the parameters, on all ranks, the rounded masters."""

    def drop_gradients(self) -> None:
        """Forget the accumulated gradients and everything that counts micro-batches."""


class ReplicatedShards:
    """Stage 0: every rank holds everything, in our own AdamW; `gradients` was all-reduced by the engine."""

    partitioned = False

    def __init__(self, adamw: MasterAdamW) -> None:
        self._adamw = adamw

    def gradients(self) -> list[torch.Tensor]:
        return self._adamw.gradients()

    def masters(self) -> dict[str, torch.Tensor]:
        return self._adamw.masters

    def layout(self, names: Names, rank: int) -> Layout:
        return whole((name, master.numel()) for name, master in self._adamw.masters.items())

    def write_back(self) -> None:
        self._adamw.write_back()

    def drop_gradients(self) -> None:
        self._adamw.drop_gradients()


class Bfloat16Stage1Shards:
    """Stage 1 in bfloat16: BF16_Optimizer keeps whole float32 gradients on every rank, and a share of the masters."""

    partitioned = False

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def gradients(self) -> list[torch.Tensor]:
        return list(self._optimizer.fp32_groups_gradients_flat)

    def masters(self) -> dict[str, torch.Tensor]:
        return _by_group(self._optimizer.fp32_groups_flat_partition)

    def layout(self, names: Names, rank: int) -> Layout:
        return _windows(self._optimizer.bf16_groups, self._optimizer.fp32_groups_flat_partition, names, rank)

    def write_back(self) -> None:
        self._optimizer.update_lp_params()

    def drop_gradients(self) -> None:
        self._optimizer.zero_grad()


class Stage12Shards:
    """Stages 1 and 2. With the optimiser offloaded, gradients wait beside the masters in host memory."""

    partitioned = True

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def gradients(self) -> list[torch.Tensor]:
        if self._optimizer.cpu_offload:
            self._optimizer._wait_for_offload_copies()
            return [master.grad for master in self._optimizer.single_partition_of_fp32_groups]
        averaged = self._optimizer.averaged_gradients
        return [g for group in range(len(self._optimizer.bit16_groups)) for g in averaged[group]]

    def masters(self) -> dict[str, torch.Tensor]:
        return _by_group(self._optimizer.single_partition_of_fp32_groups)

    def layout(self, names: Names, rank: int) -> Layout:
        return _windows(self._optimizer.bit16_groups, self._optimizer.single_partition_of_fp32_groups, names, rank)

    def write_back(self) -> None:
        self._optimizer.update_lp_params()

    def drop_gradients(self) -> None:
        optimizer = self._optimizer
        optimizer.micro_step_id = -1
        optimizer.zero_grad(set_to_none=True)
        if optimizer.cpu_offload:
            optimizer.reset_cpu_buffers()
            for gradient in self.gradients():
                gradient.zero_()
        # Also when offloaded: in bfloat16 these hold the float32 sums before they are copied to the host.
        for group in range(len(optimizer.bit16_groups)):
            optimizer.averaged_gradients[group] = None
            optimizer.all_grad_tensors[group] = None


class Stage3Shards:
    """Stage 3: parameters too are shares; gradients live in one flat buffer that outlasts the step."""

    partitioned = True

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def gradients(self) -> list[torch.Tensor]:
        optimizer = self._optimizer
        if optimizer.offload_optimizer:
            return [master.grad for master in optimizer.fp32_partitioned_groups_flat]
        return [g for group in range(len(optimizer.fp16_groups)) for g in optimizer.averaged_gradients[group]]

    def masters(self) -> dict[str, torch.Tensor]:
        return _by_group(self._optimizer.fp32_partitioned_groups_flat)

    def layout(self, names: Names, rank: int) -> Layout:
        groups = self._optimizer.fp16_groups
        return _by_group(
            [slices([(names[p], p.ds_numel, p.partition_numel()) for p in group], rank) for group in groups]
        )

    def write_back(self) -> None:
        optimizer = self._optimizer
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def drop_gradients(self) -> None:
        optimizer = self._optimizer
        optimizer._pre_step()
        optimizer._partition_all_parameters()
        optimizer._overflow_clean_up(None)
        # A parameter that takes no part in the next step would otherwise step on what is left here.
        optimizer.grad_partitions_flat_buffer.zero_()
        if optimizer.offload_optimizer:
            for gradient in self.gradients():
                gradient.zero_()


def _by_group(groups: Sequence[T]) -> dict[str, T]:
    return {f"group-{i}": group for i, group in enumerate(groups)}


def _windows(
    groups: Sequence[Sequence[torch.nn.Parameter]], masters: Sequence[torch.Tensor], names: Names, rank: int
) -> Layout:
    """Stages 1 and 2 lay a group's parameters end to end, pad the end, and give each rank an equal length of it."""
    return _by_group(
        [
            window([(names[p], p.numel()) for p in group], rank * master.numel(), master.numel())
            for group, master in zip(groups, masters, strict=True)
        ]
    )
