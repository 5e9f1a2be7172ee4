"""Training state on disk: what comes back is what went in, and what cannot be loaded is said in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from learners.engines.optimizer import adamw
from learners.engines.saving import write_now
from learners.engines.settings import OptimizerSettings
from learners.engines.share_layout import Layout, slices, whole, window
from learners.engines.training_state import (
    SavedShare,
    model_digest,
    put_tensors,
    read_facts,
    read_share,
    read_tensors,
    write_facts,
    write_tensors,
)

FACTS = {"engine": "torch", "model": "m", "dtype": "float32", "world_size": 2, "zero_stage": 1}
LAYOUT = whole([("group-0", 4), ("group-1", 2)])
SETTINGS = OptimizerSettings(lr=0.1)
SIZES = [("a", 5), ("b", 3)]
A = [0.0, 1.0, 2.0, 3.0, 4.0]
B = [10.0, 11.0, 12.0]
PADDING = 99.0


def stepped(steps: int) -> tuple[dict[str, torch.Tensor], torch.optim.AdamW]:
    """Two masters that are views of one buffer (as ZeRO keeps them), after `steps` steps."""
    buffer = torch.arange(6, dtype=torch.float32)
    masters = {"group-0": buffer[:4].requires_grad_(), "group-1": buffer[4:].detach().requires_grad_()}
    optimizer = adamw([{"params": [m], "role": "body"} for m in masters.values()], SETTINGS)
    for _ in range(steps):
        for m in masters.values():
            m.grad = torch.ones_like(m)
        optimizer.step()
    return masters, optimizer


def test_masters_and_moments_come_back_bit_for_bit(tmp_path):
    masters, optimizer = stepped(2)
    write_tensors(tmp_path, 1, masters, optimizer, LAYOUT, write_now)
    fresh, other = stepped(0)
    put_tensors(read_tensors(tmp_path, 1, fresh), fresh, other)
    for key, master in masters.items():
        assert torch.equal(fresh[key], master)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(other.state[fresh[key]][name], optimizer.state[master][name])


def test_a_state_from_before_the_first_step_clears_the_moments(tmp_path):
    masters, optimizer = stepped(0)
    write_tensors(tmp_path, 0, masters, optimizer, LAYOUT, write_now)
    used, other = stepped(3)
    put_tensors(read_tensors(tmp_path, 0, used), used, other)
    assert used["group-0"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert len(other.state) == 0


def test_loading_keeps_the_moments_storage_so_that_views_of_it_stay_true(tmp_path):
    masters, optimizer = stepped(2)
    write_tensors(tmp_path, 0, masters, optimizer, LAYOUT, write_now)
    used, other = stepped(1)
    held = other.state[used["group-0"]]["exp_avg"]
    put_tensors(read_tensors(tmp_path, 0, used), used, other)
    assert other.state[used["group-0"]]["exp_avg"] is held
    assert torch.equal(held, optimizer.state[masters["group-0"]]["exp_avg"])


def test_another_grouping_is_refused_before_anything_is_touched(tmp_path):
    masters, optimizer = stepped(1)
    write_tensors(tmp_path, 0, masters, optimizer, LAYOUT, write_now)
    with pytest.raises(ValueError, match="differently grouped parameters"):
        read_tensors(tmp_path, 0, {"group-0": torch.zeros(4)})
    with pytest.raises(ValueError, match="differently grouped parameters"):
        read_tensors(tmp_path, 0, {"group-0": torch.zeros(3), "group-1": torch.zeros(3)})


def test_steps_come_back_and_the_state_is_plain_json(tmp_path):
    write_facts(tmp_path, FACTS, steps=7, shares=2)
    assert read_facts(tmp_path, FACTS) == (7, 2)
    assert json.loads((tmp_path / "state.json").read_text())["facts"] == FACTS


@pytest.mark.parametrize(
    ("key", "mine", "said"),
    [
        ("model", "n", "has model 'm' but this engine has 'n'; resume with the model it was saved with"),
        ("dtype", "bfloat16", "has dtype 'float32' but this engine has 'bfloat16'"),
    ],
)
def test_a_state_of_another_model_is_named_by_the_first_difference(tmp_path, key, mine, said):
    write_facts(tmp_path, FACTS, steps=7, shares=2)
    with pytest.raises(ValueError, match=said):
        read_facts(tmp_path, {**FACTS, key: mine})


def test_a_state_of_other_ranks_or_another_stage_or_engine_is_taken(tmp_path):
    write_facts(tmp_path, FACTS, steps=7, shares=2)
    others = {"engine": "deepspeed", "world_size": 3, "zero_stage": 2}
    assert read_facts(tmp_path, FACTS | others) == (7, 2)


def saved_at(folder: Path, layouts: list[Layout], lengths: dict[str, int], steps: int | list[int] = 3) -> None:
    """A state of the parameters a and b cut like this; moments are the weights times 2 and 4, and what is padding is
    PADDING. steps: of each share."""
    shares = len(layouts)
    write_facts(folder, FACTS, 3, shares)
    for share, layout in enumerate(layouts):
        count = steps[share] if isinstance(steps, list) else steps
        masters = {key: torch.full((length,), PADDING) for key, length in lengths.items()}
        for key, pieces in layout.items():
            for piece in pieces:
                part = torch.tensor({"a": A, "b": B}[piece.name])[piece.start : piece.start + piece.length]
                masters[key][piece.at : piece.at + piece.length] = part
        optimizer = adamw([{"params": [m.requires_grad_()], "role": "body"} for m in masters.values()], SETTINGS)
        for m in masters.values() if count else ():
            state = {"exp_avg": m.detach() * 2, "exp_avg_sq": m.detach() * 4, "step": torch.tensor(float(count))}
            optimizer.state[m] = state
        write_tensors(folder, share, masters, optimizer, layout, write_now)


def in_windows(ranks: int, length: int) -> list[Layout]:
    """ZeRO 1 or 2: eight elements, then padding."""
    return [{"g": window(SIZES, rank * length, length)} for rank in range(ranks)]


def in_slices(ranks: int) -> list[Layout]:
    return [{"g": slices([(n, s, -(-s // ranks)) for n, s in SIZES], rank)} for rank in range(ranks)]


MINE = {**FACTS, "world_size": 5, "zero_stage": 3, "engine": "deepspeed"}


@pytest.mark.parametrize(
    ("share", "layout", "expected"),
    [
        (0, in_windows(2, 4)[0], A[:4]),
        (1, in_windows(2, 4)[1], [A[4], *B]),
        (0, in_windows(1, 8)[0], [*A, *B]),
        (2, in_windows(5, 2)[2], [A[4], B[0]]),
        (4, in_windows(5, 2)[4], [0.0, 0.0]),  # padding alone
        (1, in_slices(2)[1], [A[3], A[4], 0.0, B[2], 0.0]),  # slices of 3 and 2, each padded
    ],
    ids=["2 windows", "the second", "1 window", "5 windows", "padding", "2 slices"],
)
@pytest.mark.parametrize("saved", ["windows", "slices", "whole"])
def test_a_new_share_is_cut_out_of_old_ones_with_its_moments_and_padded_with_zeros(
    tmp_path, saved, share, layout, expected
):
    if saved == "windows":
        saved_at(tmp_path, in_windows(3, 4), {"g": 4})  # 12 elements, four of padding
    elif saved == "slices":
        saved_at(tmp_path, in_slices(3), {"g": 3})  # a in slices of 2, b of 1
    else:
        saved_at(tmp_path, [whole(SIZES)], {"a": 5, "b": 3})
    masters = {"g": torch.zeros(len(expected))}
    steps, found = read_share(tmp_path, MINE, share, layout, masters)
    assert steps == 3
    assert found["g/master"].tolist() == expected
    if layout["g"]:
        assert found["g/exp_avg"].tolist() == [2 * x for x in expected]
        assert found["g/exp_avg_sq"].tolist() == [4 * x for x in expected]
        assert found["g/step"].item() == 3.0
    else:
        assert list(found) == ["g/master"]


def test_whole_parameters_get_back_their_shapes(tmp_path):
    saved_at(tmp_path, in_windows(3, 4), {"g": 4})
    fresh = {"a": torch.zeros(5, 1, requires_grad=True), "b": torch.zeros(3, requires_grad=True)}
    optimizer = adamw([{"params": [m], "role": "body"} for m in fresh.values()], SETTINGS)
    _, found = read_share(tmp_path, MINE, 0, whole(SIZES), fresh)
    put_tensors(found, fresh, optimizer)
    assert fresh["a"].tolist() == [[x] for x in A]
    assert optimizer.state[fresh["a"]]["exp_avg"].tolist() == [[2 * x] for x in A]
    assert optimizer.state[fresh["b"]]["exp_avg_sq"].tolist() == [4 * x for x in B]


def test_a_state_from_before_the_first_step_is_cut_without_moments(tmp_path):
    saved_at(tmp_path, in_windows(3, 4), {"g": 4}, steps=0)
    _, found = read_share(tmp_path, MINE, 1, in_windows(2, 4)[1], {"g": torch.zeros(4)})
    assert {name: t.tolist() for name, t in found.items()} == {"g/master": [A[4], *B]}


def test_no_more_is_read_than_the_share_takes(tmp_path, monkeypatch):
    saved_at(tmp_path, in_windows(3, 4), {"g": 4})
    read, real = [], SavedShare.part
    monkeypatch.setattr(SavedShare, "part", lambda *given: read.append(given[1:]) or real(*given))
    read_share(tmp_path, MINE, 1, in_windows(4, 2)[1], {"g": torch.zeros(2)})  # a[2:4]: of the first share alone
    assert read == [("g/master", 2, 2), ("g/exp_avg", 2, 2), ("g/exp_avg_sq", 2, 2)]


def test_a_share_that_holds_just_what_is_wanted_needs_no_other_file(tmp_path):
    saved_at(tmp_path, in_windows(2, 4), {"g": 4})
    (tmp_path / "rank-1.safetensors").unlink()
    _, found = read_share(tmp_path, MINE, 0, in_windows(2, 4)[0], {"g": torch.zeros(4)})
    assert found["g/master"].tolist() == A[:4]


def test_a_share_of_the_same_parts_and_other_padding_is_cut_to_its_length(tmp_path):
    saved_at(tmp_path, in_windows(1, 8), {"g": 8})
    _, found = read_share(tmp_path, MINE, 0, in_windows(1, 8)[0], {"g": torch.zeros(10)})
    assert found["g/master"].tolist() == [*A, *B, 0.0, 0.0]


def test_a_missing_or_cut_file_and_parts_of_unequal_age_are_one_sentence_each(tmp_path):
    def said(share: int = 0) -> str:
        with pytest.raises(ValueError) as error:
            read_share(tmp_path, MINE, share, in_windows(1, 8)[0], {"g": torch.zeros(8)})
        return str(error.value)

    saved_at(tmp_path, in_windows(3, 4), {"g": 4}, steps=[3, 4, 3])
    assert "parts of g were stepped 3 and 4 times; resume with the ranks" in said()
    saved_at(tmp_path, in_windows(2, 4)[:1], {"g": 4})
    assert "no saved share holds element 4 of the parameter a; take an earlier checkpoint" in said()
    saved_at(tmp_path, in_windows(3, 4), {"g": 4})
    last = tmp_path / "rank-2.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    assert f"cannot read the training state {last}" in said() and "take an earlier checkpoint" in said()
    last.unlink()
    assert f"cannot read the training state {last}" in said()
    assert "cannot read" in said(share=2), "the rank whose own file it was"


def test_a_state_that_does_not_say_what_its_shares_hold_is_good_only_as_it_was_cut(tmp_path):
    masters, _ = stepped(2)
    tensors = {f"{key}/master": m.detach().clone() for key, m in masters.items()}
    write_now(tensors, tmp_path / "rank-1.safetensors", {})
    (tmp_path / "state.json").write_text(json.dumps({"facts": FACTS, "steps": 2}))
    steps, found = read_share(tmp_path, FACTS, 1, LAYOUT, masters)
    assert steps == 2 and found["group-0/master"].tolist() == masters["group-0"].tolist()
    for key, mine in (("world_size", 3), ("zero_stage", 2), ("engine", "deepspeed")):
        with pytest.raises(
            ValueError,
            match=f"has {key} {FACTS[key]!r} but this engine has {mine!r}; it does not say what its shares hold, so "
            f"resume with the {key} it was saved with",
        ):
            read_share(tmp_path, {**FACTS, key: mine}, 1, LAYOUT, masters)


def test_a_digest_knows_names_shapes_and_order():
    one = model_digest([("a", (2, 3)), ("b", (3,))])
    assert one == model_digest([("a", (2, 3)), ("b", (3,))])
    others = ([("b", (3,)), ("a", (2, 3))], [("a", (3, 2)), ("b", (3,))], [("c", (2, 3)), ("b", (3,))])
    assert one not in {model_digest(other) for other in others}
