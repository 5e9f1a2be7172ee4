"""Prints an Examination: what the run is, what it needs, what its data and rewards look like.

In: an Examination and a rich console. Out: text. Left out: problems (cluster/commands/check.py prints them).
"""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.config.placement import Placement
from cluster.inspect.data import IGNORANT, DataFindings, Rendered, RewardFindings
from cluster.inspect.examine import Examination
from cluster.inspect.machine import GIB
from cluster.inspect.memory import MemoryPlan, kv_bytes_per_token

COLUMN_WIDTH = 160
"""Characters of a data column's value that are shown."""


def print_report(found: Examination, console: Console) -> None:
    config = found.config
    console.print(
        f"[bold]{escape(config.name)}[/]: {config.algorithm.name} of {escape(config.model.path)}", soft_wrap=True
    )
    console.print(f"machine: {found.machine.describe()}", soft_wrap=True)
    _print_model(found, console)
    if found.placement is not None:
        console.print(_placement_table(found.placement))
        if found.placement.shared is not None:
            console.print(f"placement: {found.placement.shared}", soft_wrap=True)
        if found.memory is not None and found.gpu_bytes is not None:  # both, or neither
            console.print(_memory_table(found.placement, found.memory, found.gpu_bytes, found.gpus_needed))
        if found.split is not None:
            console.print(f"memory: {found.split}", soft_wrap=True)
    if found.data is not None:
        _print_data(found.data, console)
    if found.rewards is not None:
        console.print(_reward_table(found.rewards))
    for note in found.notes:
        console.print(f"note: {escape(note)}", style="yellow", soft_wrap=True)


def _print_model(found: Examination, console: Console) -> None:
    facts = found.facts
    if facts is None:
        return
    size = f"{facts.parameters / 1e9:.2f} B" if facts.parameters >= 1e9 else f"{facts.parameters / 1e6:.0f} M"
    if facts.origin == "name":
        console.print(f"model: {size} parameters, by its name alone", soft_wrap=True)
        return
    per_token = kv_bytes_per_token(facts, found.config.model.dtype) / 1024
    console.print(
        f"model: {size} parameters, {facts.layers} layers, head_dim {facts.head_dim}, vocabulary {facts.vocabulary}, "
        f"{facts.positions} positions; cache {per_token:.1f} KiB a token",
        soft_wrap=True,
    )


def _placement_table(placement: Placement) -> Table:
    table = Table(title=f"placement on {placement.device}", title_justify="left")
    for heading in ("role", "processes", "GPUs each", "threads each"):
        table.add_column(heading, justify="left" if heading == "role" else "right")
    for role in placement.roles:
        table.add_row(role.role, str(role.count), f"{role.gpus:g}", str(role.threads))
    return table


def _memory_table(placement: Placement, memory: MemoryPlan, gpu_bytes: int, gpus: float) -> Table:
    """Gigabytes of one process by part, and of all processes."""
    known = all(role.known for role in memory.roles)
    needs = f"about {memory.total / GIB:.1f} GB in all" if placement.device == "cpu" else ""
    per_gpu = f"about {gpu_bytes / GIB:.1f} GB of {'one GPU' if gpus == 1 else f'each of {gpus:g} GPUs'}"
    more = "" if known else "; by the name alone: activations, logits and cache are not in it"
    table = Table(title=f"memory, GB: {needs or per_gpu}{more}", title_justify="left")
    for heading in ("role", "one process holds", "one", "all"):
        table.add_column(heading, justify="right" if heading in ("one", "all") else "left")
    for role in memory.roles:
        parts = ", ".join(f"{part} {size / GIB:.2f}" for part, size in role.parts.items())
        table.add_row(role.role, parts, f"{role.bytes / GIB:.2f}", f"{role.count * role.bytes / GIB:.2f}")
    table.add_row("object store", "two versions of the weights", "", f"{memory.shared / GIB:.2f}")
    return table


def _print_data(data: DataFindings, console: Console) -> None:
    rows = ", ".join(f"{count} {name}" for name, count in data.rows.items() if count or name.startswith("questions"))
    console.print(f"data: {escape(data.name)}: {rows}", soft_wrap=True)
    console.print(f"      the longest has {data.longest} tokens, the window is {data.window}", soft_wrap=True)
    for sample in data.samples:
        _print_sample(sample, console)


def _print_sample(sample: Rendered, console: Console) -> None:
    console.rule(f"{escape(sample.title)}, {sample.tokens} tokens", align="left")
    console.print(sample.text, markup=False, highlight=False, soft_wrap=True)
    for name, value in sample.columns.items():
        text = repr(value)
        shown = text if len(text) <= COLUMN_WIDTH else f"{text[:COLUMN_WIDTH]}..."
        console.print(f"  {name}: {shown}", markup=False, highlight=False, style="dim", soft_wrap=True)


def _reward_table(rewards: RewardFindings) -> Table:
    table = Table(title="rewards, mean over the samples tried", title_justify="left")
    table.add_column("function")
    table.add_column("the data's answer", justify="right")
    table.add_column(f'"{IGNORANT}"', justify="right")
    for name in rewards.ignorant:
        table.add_row(name, _score(rewards.answered[name]), _score(rewards.ignorant[name]))
    return table


def _score(value: float | None) -> str:
    return "no score" if value is None else f"{value:.3f}"


def runs_on(found: Examination) -> str:
    """What the plan runs on, in words."""
    count = f"{found.gpus_needed:g} GPU{'' if found.gpus_needed == 1 else 's'}"
    if found.gpu_bytes is None:
        where = count
    else:
        least = "more than" if found.memory and not all(role.known for role in found.memory.roles) else "about"
        each = "" if found.gpus_needed == 1 else " each"
        where = f"{count} of {least} {found.gpu_bytes / GIB:.0f} GB{each}"
    return where if found.config.ray.address == "local" else f"a Ray cluster with {where}"
