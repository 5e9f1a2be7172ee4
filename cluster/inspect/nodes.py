"""Can every node of a cluster use the run directory and the model? Runs on the nodes, by workers.on_every_node.

In: a run directory with a mark in it, a model path. Out: a `NodeReport` per node, and Findings from all of them. Left
out: Ray, and whether the packages there import (the call fails when they do not).
"""

from __future__ import annotations

import platform
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.inspect.health import FAIL, OK, Finding

if TYPE_CHECKING:
    from cluster.workers import NodeAnswer

SHARE = "mount one shared directory at the same path on every node, or use a URL for --run-dir"
COMPARED = ("ray", "torch", "transformers", "deepspeed")


@dataclass(frozen=True, slots=True)
class NodeReport:
    """reads: the mark's text as the node sees it (None: it cannot). wrote: the name of the file it left beside the
    mark (None: it could not). model: it finds config.json there (None: none was asked for)."""

    reads: str | None
    wrote: str | None
    model: bool | None
    versions: tuple[tuple[str, str], ...]


def place_mark(run_dir: Path) -> Path:
    """A file that only this call can have written, for the nodes to find."""
    run_dir.mkdir(parents=True, exist_ok=True)
    mark = run_dir / f".doctor-{secrets.token_hex(8)}"
    mark.write_text(mark.name)
    return mark


def visit(mark: str, model_path: str | None) -> NodeReport:
    """What this node can do; runs on each node."""
    path, own = Path(mark), secrets.token_hex(8)
    try:
        reads = path.read_text()
    except OSError:
        reads = None
    try:
        # No parents are made: a directory that exists only here would hide that it is not shared.
        path.with_name(f"{path.name}-{own}").write_text(own)
        wrote = f"{path.name}-{own}"
    except OSError:
        wrote = None
    model = None if model_path is None else (Path(model_path) / "config.json").is_file()
    return NodeReport(reads, wrote, model, here())


def here() -> tuple[tuple[str, str], ...]:
    return (("python", platform.python_version()), *((name, _version(name)) for name in COMPARED))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def node_findings(mark: Path, model_path: str | None, answers: Sequence[NodeAnswer]) -> Iterator[Finding]:
    """One finding per node and trouble; removes what the nodes left."""
    for answer in answers:
        subject = f"node {answer.node}"
        if answer.error is not None:
            yield Finding(FAIL, subject, answer.error, "install Raylign there as here, and look at its Ray logs")
            continue
        troubles = list(_troubles(mark, model_path, answer.value))
        for text, fix in troubles:
            yield Finding(FAIL, subject, text, fix)
        if not troubles:
            sees = ", sees the model" if answer.value.model else ""
            yield Finding(OK, subject, f"reads and writes the run directory{sees}")
    for left in mark.parent.glob(f"{mark.name}*"):
        left.unlink()


def _troubles(mark: Path, model_path: str | None, report: NodeReport) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to do)."""
    if report.reads != mark.name:
        yield "cannot read the run directory", SHARE
    elif report.wrote is None:
        yield "cannot write to the run directory", f"give its user the right to, or {SHARE}"
    elif not (mark.parent / report.wrote).is_file():
        yield "writes to another run directory than this one", SHARE
    if report.model is False:
        yield f"does not see the model {model_path}", "copy it there, or give a hub id or a shared path"
    own = dict(here())
    for name, there in report.versions:
        if there != own[name]:
            yield f"has {name} {there}, here it is {own[name]}", "use one image on every node"
