"""An engine's training state on disk: tensors as safetensors, the rest as JSON; nothing that can run code on load.

In: master weights by key, the AdamW that steps them, facts that must match on resume. Out: `state.json` (once) and
`rank-R.safetensors` (one a rank, or rank 0's alone where every rank holds the same). Settings such as the learning
rate are left out: they come from the run's config. So are frozen parameters and buffers, which training never changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from learners.saving import Write

STATE_FILE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def rank_file(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def model_digest(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """Identifies a model's trainable parameters by name and whole shape, in order."""
    return hashlib.sha256(json.dumps([[n, list(s)] for n, s in shapes]).encode()).hexdigest()[:16]


def write_facts(directory: Path, facts: Mapping[str, Any], steps: int) -> None:
    """Write `state.json`: the facts that must match on load, and how many steps were applied."""
    text = json.dumps({"facts": dict(facts), "steps": steps}, indent=2, sort_keys=True)
    (directory / STATE_FILE).write_text(text + "\n")


def read_steps(directory: Path, facts: Mapping[str, Any]) -> int:
    """The applied steps, after checking that the state is of this engine: ValueError naming the first difference."""
    path = directory / STATE_FILE
    if not path.is_file():
        raise ValueError(
            f"{directory} holds no training state: {STATE_FILE} is missing; give a directory that save wrote"
        )
    saved = json.loads(path.read_text())
    for key, mine in facts.items():
        theirs = saved["facts"].get(key)
        if theirs != mine:
            raise ValueError(
                f"the training state in {directory} has {key} {theirs!r} but this engine has {mine!r}; "
                f"resume with the {key} it was saved with"
            )
    return int(saved["steps"])


def write_tensors(
    directory: Path, rank: int, masters: Mapping[str, torch.Tensor], adamw: torch.optim.AdamW, write: Write
) -> None:
    """Write this rank's masters and moments. Before the first step there are no moments yet, and none are written."""
    tensors: dict[str, torch.Tensor] = {}
    for key, master in masters.items():
        tensors[f"{key}/master"] = master
        state = adamw.state.get(master, {})
        tensors.update({f"{key}/{name}": state[name] for name in MOMENTS if name in state})
    write(tensors, directory / rank_file(rank))


def read_tensors(directory: Path, rank: int, masters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `write_tensors` wrote, checked against the masters it is meant for; nothing is touched yet."""
    path = directory / rank_file(rank)
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the training state {path}: {error}; take an earlier checkpoint") from error
    sizes = {key.removesuffix("/master"): t.numel() for key, t in saved.items() if key.endswith("/master")}
    if sizes != {key: master.numel() for key, master in masters.items()}:
        raise ValueError(f"{path} holds the state of differently grouped parameters; take a checkpoint of this model")
    return saved


@torch.no_grad()
def put_tensors(
    saved: Mapping[str, torch.Tensor], masters: Mapping[str, torch.Tensor], adamw: torch.optim.AdamW
) -> None:
    """Put masters and moments back, bit for bit."""
    for key, master in masters.items():
        master.copy_(saved[f"{key}/master"].view(master.shape))
        _set_moments(adamw, master, {n: saved[f"{key}/{n}"] for n in MOMENTS if f"{key}/{n}" in saved})


def _set_moments(adamw: torch.optim.AdamW, master: torch.Tensor, moments: Mapping[str, torch.Tensor]) -> None:
    """In place where moments already exist, so that whoever holds views of them (ZeRO does) keeps seeing them."""
    if not moments:
        adamw.state.pop(master, None)
        return
    state = adamw.state[master]
    for name, value in moments.items():
        if name in state:
            state[name].copy_(value.view(state[name].shape))
        else:
            state[name] = value.to(master.device, copy=True)
