"""The commit: a directory whose manifest, written last, gives size and hash of every file in it.

In: what the roles write into a staging directory. Out: `checkpoints/step-N/`, renamed into place whole; verified
before anything is loaded from it. A directory without a manifest, or with a file that differs, never counts.
Left out: what the files hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.durable import fsync
from cluster.run.directory import write_atomic

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d+)")


def commit(directory: Path, step: int, stage: Path, synced: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Turn a staged directory into the commit of `step`: sync every file, write the manifest, rename. synced: size and
    hash of files that were synced by who wrote them, by their path in the stage."""
    known, files = synced or {}, {}
    for path in sorted(p for p in stage.rglob("*") if p.is_file()):
        name = path.relative_to(stage).as_posix()
        if name in known:
            files[name] = dict(known[name])
            continue
        fsync(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    body = {"step": step, "files": files}
    write_atomic(stage / MANIFEST, json.dumps({**body, "sha256": _body_hash(body)}, indent=1) + "\n")
    for folder in [stage, *(p for p in stage.rglob("*") if p.is_dir())]:
        fsync(folder)
    target = directory / f"step-{step}"
    if target.exists():  # an earlier attempt at the same step, whose history was cut back
        remove(target)
    os.replace(stage, target)
    fsync(directory)


def open_stage(directory: Path, step: int) -> Path:
    """A fresh directory to write a checkpoint into."""
    stage = directory / f".step-{step}.tmp"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    return stage


def steps(directory: Path) -> list[int]:
    """Steps of the directories that claim to be checkpoints, in order."""
    found = [(NAME.fullmatch(p.name), p) for p in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(m[1]) for m, p in found if m and (p / MANIFEST).is_file())


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's directory; ValueError for a directory of another name."""
    match = NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is no checkpoint: those are named step-N")
    return int(match[1])


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in a sentence; None if every file is as its manifest says."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        body = {"step": manifest["step"], "files": manifest["files"]}
        whole = manifest["sha256"] == _body_hash(body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{checkpoint} has no readable manifest ({error})"
    if not whole or checkpoint.name != f"step-{body['step']}":
        return f"{checkpoint / MANIFEST} is not as it was written, or is another checkpoint's"
    for name, facts in body["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{path} has {path.stat().st_size} bytes, its manifest says {facts['bytes']}"
        if _sha256(path) != facts["sha256"]:
            return f"{path} does not have the hash in its manifest"
    return None


def latest_whole(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what is wrong with the newer ones."""
    damaged: list[str] = []
    for step in reversed(steps(directory)):
        checkpoint = directory / f"step-{step}"
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint, damaged
        damaged.append(problem)
    return None, damaged


def clear_stages(directory: Path) -> None:
    """Remove what drivers that were killed had half written, or half removed."""
    for stage in directory.glob(".step-*.tmp"):
        shutil.rmtree(stage, ignore_errors=True)


def set_aside_after(directory: Path, whole: Path | None) -> None:
    """Rename the damaged checkpoints that are newer: pruning would count them, and keep them for the whole one."""
    last = -1 if whole is None else step_of(whole)
    for step in steps(directory):
        if step > last:
            aside = directory / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(directory / f"step-{step}", aside)


def prune(directory: Path, keep_last: int, keep: set[int]) -> None:
    """Remove all checkpoints but the last `keep_last` and those of the steps in `keep`."""
    have = steps(directory)
    for step in have[: max(0, len(have) - keep_last)]:
        if step not in keep:
            remove(directory / f"step-{step}")


def remove(checkpoint: Path) -> None:
    """A checkpoint, or an export. Under another name first: one that is half removed claims nothing, and `clear_stages`
    finds it."""
    aside = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(checkpoint, aside)
    shutil.rmtree(aside)


def _body_hash(body: dict) -> str:
    """The manifest's own hash: a damaged one must not vouch for anything."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
