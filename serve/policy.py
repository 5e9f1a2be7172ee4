"""Which policy is served: find it in a run directory, check that it is whole, and name its version.

In: a run directory (its `policy/step-N` of the highest step, or of the step asked for) or any Hugging Face directory.
Out: a frozen `ServedPolicy`. A directory is whole when config, tokenizer and every weight file are there at full
length. The exporter's `raylign.json` ({"run", "step", "digest"}) names the version; without it the version is
"unversioned". Left out: loading anything.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

VERSION_FILE = "raylign.json"
PIPELINE_FILE = "pipeline.yaml"
UNVERSIONED = "unversioned"
_STEP = re.compile(r"step-(\d+)$")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class ServeInputError(ValueError):
    """What was asked for cannot be served: exit code 2. The text is one sentence with the fix."""


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """A whole Hugging Face directory and its name. `run`, `step`, `digest` are None where nothing recorded them."""

    path: str
    name: str
    step: int | None
    digest: str | None

    @property
    def version(self) -> str:
        """What every answer's header carries, such as `step-40/0f3c9a1b2d4e`."""
        if self.step is None or self.digest is None:
            return UNVERSIONED
        return f"step-{self.step}/{self.digest[:12]}"

    @property
    def model_id(self) -> str:
        """What /v1/models lists and every answer's `model` says: it changes with the step."""
        return self.name if self.step is None else f"{self.name}-step-{self.step}"


def find_policy(target: str | Path, step: int | None = None) -> ServedPolicy:
    """The policy that `target` means. Raises ServeInputError."""
    root = Path(target).expanduser().resolve()
    if not root.is_dir():
        raise ServeInputError(f"{target} is no directory; give a run directory or a Hugging Face model directory")
    if (root / PIPELINE_FILE).is_file():
        stages = sorted(path.parent.name for path in root.glob("*/policy") if any(path.glob("step-*")))
        have = ", ".join(stages) or "no stage has exported a model yet"
        raise ServeInputError(f"{target} is a pipeline; give the directory of one of its stages: {have}")
    if (root / "config.json").is_file() and not (root / "policy").is_dir():
        if step is not None:
            raise ServeInputError(f"--step {step} needs a run directory, and {target} is a model directory")
        return _read(root, fallback=root.name)
    exported = _exported(root / "policy")
    if not exported:
        raise ServeInputError(
            f"{target} has no policy to serve: there is no policy/step-N in it and no config.json; "
            "let the run finish with `checkpoint.export: true`, or give a Hugging Face model directory"
        )
    if step is None:
        step = max(exported)
    if step not in exported:
        have = ", ".join(str(n) for n in sorted(exported))
        raise ServeInputError(f"{target} has no policy of step {step}; it has: {have}")
    return _read(exported[step], fallback=root.name)


def _exported(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    found = ((_STEP.match(child.name), child) for child in folder.iterdir() if child.is_dir())
    return {int(match.group(1)): child for match, child in found if match}


def _read(directory: Path, fallback: str) -> ServedPolicy:
    missing = _missing(directory)
    if missing:
        raise ServeInputError(f"{directory} is incomplete: {'; '.join(missing)}; export the policy again")
    record = directory / VERSION_FILE
    if not record.is_file():
        return ServedPolicy(str(directory), _safe(fallback), None, None)
    try:
        fields = json.loads(record.read_text())
        return ServedPolicy(str(directory), _safe(str(fields["run"])), int(fields["step"]), str(fields["digest"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ServeInputError(
            f'{record} must be an object with "run", "step" and "digest" ({error!r}); export the policy again'
        ) from error


def _missing(directory: Path) -> list[str]:
    """What keeps the directory from being loaded, in words; empty when it is whole."""
    missing = []
    if not (directory / "config.json").is_file():
        missing.append("config.json is missing")
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        missing.append(f"no tokenizer ({', '.join(_TOKENIZER_FILES)})")
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        shards = sorted(path.name for path in directory.glob("*.safetensors")) or ["model.safetensors"]
    for shard in shards:
        fault = _weights_fault(directory / shard)
        if fault:
            missing.append(f"{shard} {fault}")
    return missing


def _weights_fault(path: Path) -> str | None:
    """A safetensors file is 8 bytes of header length, the header, and as many bytes as its last tensor ends at."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > size - 8:
            return f"is cut short ({size} bytes)"
        try:
            header = json.loads(file.read(header_bytes))
        except ValueError:
            return "is no safetensors file"
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    whole = 8 + header_bytes + max(ends, default=0)
    return None if size == whole else f"is cut short ({size} of {whole} bytes)"


def _safe(name: str) -> str:
    """A model id that is safe in a URL, a file name and a deployment's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "policy"
