"""An engine's training state on disk: tensors as safetensors, the rest as JSON; nothing that can run code on load.

In: master weights by key, the AdamW that steps them, what of each parameter they hold, facts that must match on
resume. Out: `state.json` (once) and `rank-R.safetensors` (one a rank, or rank 0's alone where every rank holds the
same). A rank finds its share in its own file, or cuts it out of the files of other ranks, stages or engines. Settings
such as the learning rate are left out: they come from the run's config. So are frozen parameters and buffers, which
training never changes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from learners.engines import share_layout
from learners.engines.saving import Write
from learners.engines.share_layout import Copy, Layout

STATE_FILE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
LAYOUT = "layout"
"""Name of the layout in a tensor file's metadata: one file, so that neither is ever without the other."""
MUST_MATCH = ("model", "dtype")
"""Facts without which a state is another's. The others say how it was cut: they matter where it does not say what its
shares hold, as states of older versions do not."""


def rank_file(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def model_digest(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """Identifies a model's trainable parameters by name and whole shape, in order."""
    return hashlib.sha256(json.dumps([[n, list(s)] for n, s in shapes]).encode()).hexdigest()[:16]


def write_facts(directory: Path, facts: Mapping[str, Any], steps: int, shares: int) -> None:
    """Write `state.json`: whose state it is, how many steps were applied, how many tensor files there are."""
    text = json.dumps({"facts": dict(facts), "steps": steps, "shares": shares}, indent=2, sort_keys=True)
    (directory / STATE_FILE).write_text(text + "\n")


def read_facts(directory: Path, facts: Mapping[str, Any]) -> tuple[int, int | None]:
    """The applied steps and the number of shares (None: an older state, good only as it was cut), after checking that
    the state is of this engine: ValueError naming the first difference."""
    path = directory / STATE_FILE
    if not path.is_file():
        raise ValueError(
            f"{directory} holds no training state: {STATE_FILE} is missing; give a directory that save wrote"
        )
    saved = json.loads(path.read_text())
    shares = saved.get("shares")
    for key in MUST_MATCH if shares is not None else facts:
        mine, theirs = facts[key], saved["facts"].get(key)
        if theirs != mine:
            why = "" if key in MUST_MATCH else "it does not say what its shares hold, so "
            raise ValueError(
                f"the training state in {directory} has {key} {theirs!r} but this engine has {mine!r}; "
                f"{why}resume with the {key} it was saved with"
            )
    return int(saved["steps"]), shares


def write_tensors(
    directory: Path,
    share: int,
    masters: Mapping[str, torch.Tensor],
    adamw: torch.optim.AdamW,
    layout: Layout,
    write: Write,
) -> None:
    """Write a share's masters and moments, flat, and its layout. Before the first step there are no moments yet, and
    none are written."""
    tensors: dict[str, torch.Tensor] = {}
    for key, master in masters.items():
        tensors[f"{key}/master"] = master.detach().reshape(-1)
        state = adamw.state.get(master, {})
        for name in MOMENTS:
            if name in state:
                tensors[f"{key}/{name}"] = state[name] if name == "step" else state[name].reshape(-1)
    write(tensors, directory / rank_file(share), {LAYOUT: share_layout.to_json(layout)})


def read_share(
    directory: Path, facts: Mapping[str, Any], share: int, layout: Layout, masters: Mapping[str, torch.Tensor]
) -> tuple[int, dict[str, torch.Tensor]]:
    """The applied steps, and this share's masters and moments: its own file where that holds just this, else a new cut
    of all files. Nothing is touched yet."""
    steps, shares = read_facts(directory, facts)
    if shares is None:
        return steps, read_tensors(directory, share, masters)
    if share < shares and SavedShare(directory / rank_file(share)).is_cut(layout, masters):
        return steps, read_tensors(directory, share, masters)
    return steps, cut_tensors([SavedShare(directory / rank_file(i)) for i in range(shares)], layout, masters)


def read_tensors(directory: Path, share: int, masters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `write_tensors` wrote, checked against the masters it is meant for."""
    path = directory / rank_file(share)
    with _reading(path):
        saved = load_file(path)
    sizes = {key.removesuffix("/master"): t.numel() for key, t in saved.items() if key.endswith("/master")}
    if sizes != {key: master.numel() for key, master in masters.items()}:
        raise ValueError(f"{path} holds the state of differently grouped parameters; take a checkpoint of this model")
    return saved


class SavedShare:
    """A share's file, of which no more is read than is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _reading(path):
            self._file = safe_open(path, framework="pt")
            self._names = set(self._file.keys())
            metadata = self._file.metadata()
        if metadata is None or LAYOUT not in metadata:
            raise ValueError(f"{path} does not say what it holds of which parameter; take an earlier checkpoint")
        self.layout = share_layout.from_json(metadata[LAYOUT])

    def is_cut(self, layout: Layout, masters: Mapping[str, torch.Tensor]) -> bool:
        """Whether it holds just the masters of this layout: the same parts, and as much padding."""
        if self.layout != layout:
            return False
        with _reading(self._path):
            lengths = {key: math.prod(self._file.get_slice(f"{key}/master").get_shape()) for key in layout}
        return lengths == {key: master.numel() for key, master in masters.items()}

    def part(self, name: str, start: int, length: int) -> torch.Tensor:
        """Elements of a flat tensor."""
        with _reading(self._path):
            return self._file.get_slice(name)[start : start + length]

    def step(self, key: str) -> torch.Tensor | None:
        """How often the tensor was stepped; None: never."""
        name = f"{key}/step"
        if name not in self._names:
            return None
        with _reading(self._path):
            return self._file.get_tensor(name)


def cut_tensors(
    saved: Sequence[SavedShare], layout: Layout, masters: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """As `read_tensors`, of all old shares what belongs here, so that no rank ever holds the whole model. Padding is
    zeros. ValueError where they do not hold it all."""
    found: dict[str, torch.Tensor] = {}
    for key, copies in share_layout.copies(layout, [share.layout for share in saved]).items():
        step = _common_step(key, copies, saved)
        for name in ("master",) if step is None else ("master", "exp_avg", "exp_avg_sq"):
            flat = found[f"{key}/{name}"] = torch.zeros(masters[key].numel(), dtype=torch.float32)
            for copy in copies:
                part = saved[copy.share].part(f"{copy.key}/{name}", copy.source, copy.length)
                flat[copy.at : copy.at + copy.length] = part
        if step is not None:
            found[f"{key}/step"] = step
    return found


def _common_step(key: str, copies: Sequence[Copy], saved: Sequence[SavedShare]) -> torch.Tensor | None:
    """How often the parts of a new tensor were stepped, which one tensor cannot say but once; None: never."""
    steps = [saved[share].step(source) for share, source in dict.fromkeys((c.share, c.key) for c in copies)]
    counts = dict.fromkeys(0.0 if step is None else step.item() for step in steps)
    if len(counts) > 1:
        raise ValueError(
            f"parts of {key} were stepped {' and '.join(f'{n:g}' for n in counts)} times; resume with the ranks, the "
            "ZeRO stage and the engine they were saved with"
        )
    return steps[0] if steps else None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the training state {path}: {error}; take an earlier checkpoint") from error


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
        shaped = value if name == "step" else value.view(master.shape)
        if name in state:
            state[name].copy_(shaped)
        else:
            state[name] = shaped.to(master.device, copy=True)
