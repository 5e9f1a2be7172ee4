"""From one step's columns to what the losses take: padded tensors, rewards, advantages, returns.

In: StepInputs (flat columns) and a Method. Out: `Experience`, CPU tensors [B, T]. Every rank computes all of it from
the whole batch: the columns are a few megabytes, and group statistics and whitening then need no collective and are
the same bits whatever the number of ranks. Left out: forwards and losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.models.packing import MicroBatch
from actors.response_mask import response_mask
from actors.types import FinishReason, SampleBatch
from learners.methods import advantages as adv
from learners.methods.aggregation import masked
from learners.methods.kl import steady_kl
from learners.methods.method import Method, StepInputs, required
from learners.methods.presets import Preset
from learners.methods.row_advantages import ROW_ADVANTAGES, Rows


@dataclass(frozen=True, slots=True)
class Experience:
    """mask: trained tokens. advantages [B, T]; returns [B, T] (None without a critic); old, ref, roll, values as in
    StepInputs, padded. sequence_kl: row-summed `steady_kl` (k1) of old and ref, [B], None without both. kept: rows with
    such a token."""

    batch: SampleBatch
    mask_BT: Tensor
    roll_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor | None
    old_BT: Tensor | None
    ref_BT: Tensor | None
    values_BT: Tensor | None
    sequence_kl_B: Tensor | None

    @property
    def kept_rows(self) -> np.ndarray:
        return self.mask_BT.any(dim=1).nonzero()[:, 0].numpy()


@dataclass(frozen=True, slots=True)
class _Columns:
    """What advantages are made of besides scores, padded [B, T]."""

    mask_BT: Tensor
    old_BT: Tensor | None
    ref_BT: Tensor | None
    values_BT: Tensor | None


def slot_index(batch: SampleBatch, rows: np.ndarray) -> Tensor:
    """[b, T] index on the batch's T axis of each row's tokens, -1 where the row is shorter."""
    lengths = batch.lengths[rows]
    columns = np.arange(int(lengths.max()) if len(rows) else 0)
    index = batch.offsets[rows][:, None] + columns[None, :]
    return torch.from_numpy(np.where(columns[None, :] < lengths[:, None], index, -1))


def packed_index(micro: MicroBatch) -> Tensor:
    """[b, T] index into the micro-batch's own n response tokens."""
    offsets = np.concatenate([[0], np.cumsum(micro.row_lengths)])
    columns = np.arange(int(micro.row_lengths.max()) if len(micro.rows) else 0)
    inside = columns[None, :] < micro.row_lengths[:, None]
    return torch.from_numpy(np.where(inside, offsets[:-1, None] + columns[None, :], -1))


def pad(flat: Tensor, index_BT: Tensor) -> Tensor:
    """A flat column [T] as [b, T]; 0 where the index is -1. Differentiable."""
    return torch.where(index_BT >= 0, flat[index_BT.clamp(min=0)], torch.zeros((), dtype=flat.dtype))


def micro_mask(mask: np.ndarray, micro: MicroBatch) -> Tensor:
    """[b, T] bool: a mask [T] of the whole batch on the micro-batch's rows, False on padding."""
    return pad(torch.from_numpy(mask[micro.slots]), packed_index(micro))


def build_experience(inputs: StepInputs, method: Method) -> Experience:
    """Rewards (with the KL where the method has it there), advantages and returns of a whole batch."""
    batch = inputs.batch
    preset = method.preset
    index_BT = slot_index(batch, np.arange(len(batch)))

    # Columns are copied: an array that came through Ray is read-only shared memory, which torch must not alias.
    def padded(column: np.ndarray) -> Tensor:
        return pad(torch.from_numpy(np.array(column, np.float32)), index_BT)

    scores_B = torch.from_numpy(np.array(inputs.scores.values, np.float64))
    valid_B = torch.isfinite(scores_B)
    truncated_B = torch.from_numpy(batch.finish_reasons == FinishReason.LENGTH)
    mask_BT = pad(torch.from_numpy(response_mask(batch)), index_BT) & valid_B[:, None]
    if preset.filter_overlong:
        mask_BT &= ~truncated_B[:, None]
    if preset.resample_flat_groups:  # others were sampled in their place: they leave the token count too
        mask_BT &= adv.groups_with_spread(scores_B, _groups(batch), valid_B)[:, None]
    given = (inputs.old, inputs.reference, inputs.values)
    old_BT, ref_BT, values_BT = (None if column is None else padded(column) for column in given)
    columns = _Columns(mask_BT, old_BT, ref_BT, values_BT)
    advantages_BT, returns_BT = _advantages(inputs, method, scores_B, valid_B, columns)
    sequence_kl_B = None
    if old_BT is not None and ref_BT is not None:
        sequence_kl_B = steady_kl(masked(old_BT, mask_BT), masked(ref_BT, mask_BT)).sum(dim=1)
    return Experience(
        batch=batch,
        mask_BT=mask_BT,
        roll_BT=padded(batch.logprobs),
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
        old_BT=old_BT,
        ref_BT=ref_BT,
        values_BT=values_BT,
        sequence_kl_B=sequence_kl_B,
    )


def _advantages(
    inputs: StepInputs, method: Method, scores_B: Tensor, valid_B: Tensor, columns: _Columns
) -> tuple[Tensor, Tensor | None]:
    """(advantages, returns) [B, T]: GAE or reward-to-go per token, or one number a row on each of its tokens."""
    preset, mask_BT = method.preset, columns.mask_BT
    returns_BT = None
    if preset.advantage == "gae":
        rewards_BT = _token_rewards(preset, scores_B, columns, inputs.kl_coef)
        values_BT = required(columns.values_BT, "values")
        advantages_BT, returns_BT = adv.gae(rewards_BT, values_BT, mask_BT, method.gamma, method.gae_lambda)
    elif preset.advantage == "reinforce_pp":
        rewards_BT = _token_rewards(preset, scores_B, columns, inputs.kl_coef)
        advantages_BT = adv.reward_to_go(rewards_BT, mask_BT, method.gamma)
    else:
        advantages_B = _row_advantages(inputs, preset, scores_B, valid_B, columns)
        advantages_BT = adv.spread_over_tokens(advantages_B.float(), mask_BT)
    return (adv.masked_whiten(advantages_BT, mask_BT) if preset.whiten else advantages_BT), returns_BT


def _token_rewards(preset: Preset, scores_B: Tensor, columns: _Columns, kl_coef: float) -> Tensor:
    """[B, T]: the score on the last token, and the token KL where the method has it in the reward."""
    rewards_BT = adv.place_sequence_reward(scores_B.float(), columns.mask_BT)
    if preset.kl_place != "reward":
        return rewards_BT
    old_BT, ref_BT = required(columns.old_BT, "old"), required(columns.ref_BT, "reference")
    return adv.kl_penalised_rewards(rewards_BT, old_BT, ref_BT, columns.mask_BT, kl_coef, preset.kl_kind)


def _row_advantages(inputs: StepInputs, preset: Preset, scores_B: Tensor, valid_B: Tensor, columns: _Columns) -> Tensor:
    """[B], float64: each row's score against its group's, or against its prompt's greedy response."""
    if preset.score_includes_kl and inputs.kl_coef:
        old_BT, ref_BT = required(columns.old_BT, "old"), required(columns.ref_BT, "reference")
        scores_B = adv.kl_penalised_scores(scores_B, old_BT, ref_BT, columns.mask_BT, inputs.kl_coef, preset.kl_kind)
    greedy_B = None if inputs.baseline is None else torch.from_numpy(np.array(inputs.baseline, np.float64))
    rows = Rows(scores_B, _groups(inputs.batch), valid_B, columns.mask_BT.sum(dim=1), greedy_B)
    return ROW_ADVANTAGES[preset.advantage](rows)


def _groups(batch: SampleBatch) -> Tensor:
    return torch.from_numpy(batch.groups[batch.group_rows])


def minibatch_rows(experience: Experience, epoch: int, minibatches: int, seed: int) -> list[np.ndarray]:
    """The kept rows in `minibatches` parts of about equal tokens, groups whole (so that prompts stay shared), in an
    order drawn from (seed, epoch). Fewer parts when there are fewer groups."""
    rows = experience.kept_rows
    if minibatches == 1:
        return [rows] if len(rows) else []
    groups = experience.batch.group_rows[rows]
    order = np.random.default_rng([seed, epoch]).permutation(np.unique(groups))
    parts: list[list[int]] = [[] for _ in range(min(minibatches, len(order)))]
    loads = [0] * len(parts)
    for group in order:
        mine = rows[groups == group]
        part = loads.index(min(loads))
        parts[part].extend(int(r) for r in mine)
        loads[part] += int(experience.batch.lengths[mine].sum())
    return [np.array(sorted(part), np.int64) for part in parts]
