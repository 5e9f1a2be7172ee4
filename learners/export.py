"""Write a tuned model as a Hugging Face directory that loads without Raylign, and a step's inputs for a look.

In: a learner, the directory it started from (config, tokenizer, chat template), facts for the card. Out: files,
renamed into place whole. Left out: which step is worth exporting (cluster).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from actors.durable import fsync
from actors.models.adapters import write_adapter
from actors.models.lora import LoraSettings
from actors.models.pretrained import HUB_ID
from actors.types import SampleBatch, ScoreBatch
from learners.base import LearnerBase
from learners.methods.method import StepInputs

CARRIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
SHARD_BYTES = 4 << 30


def export_policy(policy: LearnerBase, directory: Path, source: Path, facts: Mapping[str, Any]) -> None:
    """Collective: every rank gathers, rank 0 writes safetensors, tokenizer, chat template, card and raylign.json.

    facts: run, model, method, step, digest, and `evaluation` (name -> text) for the card.
    """
    staged = directory.with_name(f".{directory.name}.tmp")
    if policy.rank == 0:
        _empty(staged)
    index: dict[str, str] = {}
    total, dtype = 0, ""
    held: dict[str, torch.Tensor] = {}
    shards: list[str] = []

    def flush() -> None:
        if held and policy.rank == 0:
            name = f"model-{len(shards) + 1:05d}.safetensors"
            save_file(held, staged / name, metadata={"format": "pt"})
            shards.append(name)
            index.update(dict.fromkeys(held, name))
        held.clear()

    for part in policy.full_parameters(SHARD_BYTES):
        flush()
        for name, tensor in part:
            if policy.rank == 0:
                held[name] = tensor.detach().cpu().contiguous().clone()
                total += held[name].nbytes
                dtype = str(tensor.dtype).removeprefix("torch.")
    flush()
    if policy.rank != 0:
        return
    if len(shards) == 1:
        (staged / shards[0]).rename(staged / "model.safetensors")
    else:
        body = {"metadata": {"total_size": total}, "weight_map": index}
        (staged / "model.safetensors.index.json").write_text(json.dumps(body, indent=2))
    _carry(source, staged, CARRIED)
    _write_config(staged / "config.json", {**policy.config_changes, "dtype": dtype})
    _finish(staged, directory, facts)


def export_adapter(
    policy: LearnerBase, directory: Path, source: Path, facts: Mapping[str, Any], lora: LoraSettings
) -> None:
    """Collective: rank 0 writes the adapter as a PEFT directory, with the tokenizer it was trained with. It names its
    base by hub id, or by the directory it was loaded from."""
    held: dict[str, torch.Tensor] = {}
    for part in policy.published_parameters(SHARD_BYTES):
        if policy.rank == 0:
            held.update((name, tensor.detach().cpu().contiguous().clone()) for name, tensor in part)
    if policy.rank != 0:
        return
    staged = directory.with_name(f".{directory.name}.tmp")
    _empty(staged)
    model = str(facts["model"])
    base = model if HUB_ID.fullmatch(model) and not Path(model).is_dir() else str(source)
    write_adapter(staged, held, lora, base)
    _carry(source, staged, [name for name in CARRIED if name not in ("config.json", "generation_config.json")])
    _finish(staged, directory, facts, library="peft", base=base)


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _carry(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)


def _finish(staged: Path, directory: Path, facts: Mapping[str, Any], **card: str) -> None:
    """Add what every export has, and put it in its place whole."""
    (staged / "raylign.json").write_text(json.dumps({k: facts[k] for k in ("run", "step", "digest")}) + "\n")
    (staged / "README.md").write_text(model_card(facts, **card))
    for path in [*staged.iterdir(), staged]:  # a name that stands must not outlive what it names
        fsync(path)
    if directory.exists():
        shutil.rmtree(directory)
    os.replace(staged, directory)
    fsync(directory.parent)


def _write_config(config: Path, changes: Mapping[str, Any]) -> None:
    """The source's config.json with what became otherwise. dtype is the tensors' own: loaders cast to what stands
    there, and the source's may be another than the one that was trained in."""
    body = json.loads(config.read_text())
    body.pop("torch_dtype", None)
    config.write_text(json.dumps({**body, **changes}, indent=2, sort_keys=True) + "\n")


def model_card(facts: Mapping[str, Any], library: str = "transformers", base: str | None = None) -> str:
    """The card: what was tuned, how, and what it scored. base: of an adapter."""
    rows = "\n".join(f"| {name} | {text} |" for name, text in facts["evaluation"].items())
    of_base = f"base_model: {base}\n" if base else ""
    table = f"\n| evaluation | result |\n| --- | --- |\n{rows}\n" if rows else ""
    return (
        f"---\nlibrary_name: {library}\n{of_base}tags: [raylign, {facts['method']}]\n---\n\n"
        f"# {facts['run']}, step {facts['step']}\n\n"
        f"Tuned from `{facts['model']}` with {facts['method'].upper()} by Raylign. "
        f"Weights digest `{facts['digest'][:12]}`.\n{table}"
    )


def dump_inputs(path: Path, inputs: StepInputs) -> None:
    """A step's columns as one .npz (no pickle), for replay and inspection."""
    batch = {name: getattr(inputs.batch, name) for name in inputs.batch.__slots__}
    names = ("reference", "old", "values", "baseline", "row_reference", "kto_baseline")
    columns = {name: getattr(inputs, name) for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        step=inputs.step,
        kl_coef=inputs.kl_coef,
        scores=inputs.scores.values,
        **batch,
        **{name: column for name, column in columns.items() if column is not None},
    )


def load_inputs(path: Path) -> StepInputs:
    """What `dump_inputs` saved."""
    with np.load(path, allow_pickle=False) as found:
        arrays = dict(found)
    batch = SampleBatch(**{name: arrays[name] for name in SampleBatch.__slots__})
    columns = {name: arrays.get(name) for name in ("reference", "old", "values", "baseline", "row_reference")}
    return StepInputs(
        step=int(arrays["step"]),
        batch=batch,
        scores=ScoreBatch(values=arrays["scores"], parts={}),
        kl_coef=float(arrays["kl_coef"]),
        kto_baseline=float(arrays["kto_baseline"]) if "kto_baseline" in arrays else None,
        **columns,
    )
