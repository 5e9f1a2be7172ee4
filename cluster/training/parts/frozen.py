"""The models that a run loads and never trains: known by their content, so that a resume takes no other for them.

In: a config and where its models lie. Out: a file in the run directory with the hashes of each at the run's start, and
a sentence where one is no longer what it was. The reference, the base model under an adapter, reward models and judges
are loaded from disk again by every resume, and by every process that is started anew: another one under the old path
would change what the KL, the policy or the rewards are in the middle of a run, without a word. Left out: what is
trained (its weights are the checkpoint's), reward functions (their code may be mended).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from actors.models.identity import model_hashes
from actors.models.pretrained import resolve_model
from cluster.config import Config, resolve
from cluster.errors import UserError
from cluster.run.directory import RunDirectory, write_atomic

Held = dict[str, tuple[str, dict[str, str]]]
"""By model, as a sentence calls it: where it lies, and its files' hashes."""


def frozen_models(config: Config, model_path: Path) -> dict[str, Path]:
    """Each model that the run holds still, as a sentence calls it, and its directory."""
    reward, safety = config.reward, config.reward.safety
    found: dict[str, Path] = {}
    if config.model.lora is not None:
        found["the base model"] = model_path
    elif resolve.has_reference(config):
        found["the reference"] = model_path
    for name, model in {**reward.models, **(safety.models if safety else {})}.items():
        found[f"the reward model {name}"] = resolve_model(model.path)
    for name, judge in reward.judges.items():
        if judge.path is not None:
            found[f"the judge {name}"] = resolve_model(judge.path)
    return found


def recognise(config: Config, model_path: Path, directory: RunDirectory, *, begun: bool) -> None:
    """Write down what each is, at the start of a run's history. begun: there is a commit, whose models these must be,
    wherever they lie by now; UserError where one is not. What a directory of before did not write down is, from now
    on."""
    now = _held({name: str(path) for name, path in frozen_models(config, model_path).items()})
    if begun and (other := _others(_read(directory), now)) is not None:
        raise UserError(other)
    _write(directory, now)


def changed(directory: RunDirectory) -> str | None:
    """What is no longer what the run's processes loaded, as a sentence with the fix; None if nothing is. Asked where
    they are loaded again while the run goes on."""
    before = _read(directory)
    return _others(before, _held({name: path for name, (path, _) in before.items()}))


def _held(models: Mapping[str, str]) -> Held:
    return {name: (path, model_hashes(Path(path)) if Path(path).is_dir() else {}) for name, path in models.items()}


def _others(before: Held, now: Held) -> str | None:
    said = []
    for name in sorted(before.keys() & now.keys()):
        path, files = now[name]
        if differences := _differences(before[name][1], files):
            said.append(f"{name} in {path} is not the one that this run began with: {differences}")
    return f"{'; '.join(said)}; put back what was there, or start a new run directory" if said else None


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    parts = [f"{name} is gone" for name in before.keys() - now.keys()]
    parts += [f"{name} is new" for name in now.keys() - before.keys()]
    parts += [f"{name} has changed" for name in before.keys() & now.keys() if before[name] != now[name]]
    return ", ".join(sorted(parts))


def _read(directory: RunDirectory) -> Held:
    if not directory.frozen_file.is_file():
        return {}
    rows = json.loads(directory.frozen_file.read_text())
    return {name: (row["path"], row["files"]) for name, row in rows.items()}


def _write(directory: RunDirectory, held: Held) -> None:
    rows = {name: {"path": path, "files": files} for name, (path, files) in held.items()}
    write_atomic(directory.frozen_file, json.dumps(rows, indent=1) + "\n")
