"""A model's facts from its directory, or from its name where only that is here. No weights are read.

In: a model reference. Out: `FoundModel` (where it is, or why not) and `ModelFacts` (sizes). A hub model's weights are
not fetched: its small files are, when the hub answers. Left out: engines' limits (actors.engines.limits), memory.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.engines.limits import read_model_config
from actors.models.pretrained import HUB_ID, PACKAGE_PREFIX, ModelNotFound, resolve_model

SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
WEIGHTS = ("*.safetensors", "*.bin")
NAMED_SIZE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s?([bm])(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FoundModel:
    """path: its directory, None if it is not here. weights: they are there too. reason: why something is missing.
    wrong: no such model can exist, wherever the run goes."""

    reference: str
    path: Path | None
    weights: bool
    reason: str = ""
    wrong: bool = False


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a decoder. origin says how they are known: `files` (weights' headers), `config` or `name`; by name only
    `parameters` is known and the others are 0."""

    parameters: int
    origin: str
    layers: int = 0
    hidden: int = 0
    intermediate: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    vocabulary: int = 0
    positions: int = 0
    heads: int = 0

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden


def find_model(reference: str) -> FoundModel:
    """Where the model is. A packaged one is unpacked into its cache, as a run would do."""
    local = Path(reference).expanduser().is_dir()
    if reference.startswith(PACKAGE_PREFIX) or local or not HUB_ID.fullmatch(reference):
        try:
            path = resolve_model(reference)
        except ModelNotFound as error:
            return FoundModel(reference, None, False, str(error), wrong=True)
        if _has_weights(path):
            return FoundModel(reference, path, True)
        return FoundModel(reference, path, False, f"{path} holds no weights ({' or '.join(WEIGHTS)})", wrong=True)
    return _find_on_hub(reference)


def _find_on_hub(reference: str) -> FoundModel:
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(huggingface_hub.snapshot_download(reference, allow_patterns=SMALL_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        reason = (
            f"{reference} is not on this machine and the Hugging Face hub does not give it "
            f"({_first_line(error)}); check the id and the network, or give a local directory"
        )
        return FoundModel(reference, None, False, reason)
    if _has_weights(path):
        return FoundModel(reference, path, True)
    return FoundModel(
        reference, path, False, f"{reference} is on the hub; its weights are downloaded when a run starts"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _has_weights(path: Path) -> bool:
    return any(next(path.glob(pattern), None) is not None for pattern in WEIGHTS)


def facts_of(found: FoundModel) -> ModelFacts | None:
    """The model's sizes, from the best source there is; None when not even its name tells."""
    if found.path is None:
        return facts_by_name(found.reference)
    facts = facts_by_config(read_model_config(str(found.path)))
    counted = count_parameters(found.path)
    if not counted:
        return facts
    return ModelFacts(
        **{**{name: getattr(facts, name) for name in facts.__slots__}, "parameters": counted, "origin": "files"}
    )


def count_parameters(path: Path) -> int:
    """Elements of all tensors in the directory's safetensors files, read from their headers; 0 without any."""
    total = 0
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total


def facts_by_config(config: Mapping[str, Any]) -> ModelFacts:
    """Sizes from config.json; parameters as a gated decoder of these sizes has them."""
    text = config.get("text_config", config)
    heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
    layers, vocabulary = int(text["num_hidden_layers"]), int(text["vocab_size"])
    kv_heads = int(text.get("num_key_value_heads") or heads)
    head_dim = int(text.get("head_dim") or hidden // heads)
    intermediate = int(text.get("intermediate_size") or 4 * hidden)
    layer = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim + 3 * hidden * intermediate + 2 * hidden
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings", text.get("tie_word_embeddings")) else 2)
    return ModelFacts(
        parameters=layers * layer + embeddings + hidden,
        origin="config",
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        positions=int(text.get("max_position_embeddings") or 0),
        heads=heads,
    )


def facts_by_name(reference: str) -> ModelFacts | None:
    """The parameters that a name such as `Qwen2.5-1.5B-Instruct` states; None if it states none."""
    sizes = NAMED_SIZE.findall(reference.rpartition("/")[2])
    if not sizes:
        return None
    number, unit = sizes[-1]
    return ModelFacts(parameters=round(float(number) * (1e9 if unit.lower() == "b" else 1e6)), origin="name")
