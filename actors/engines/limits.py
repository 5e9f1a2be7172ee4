"""What can be known about a model and an engine from the model's directory alone, before anything starts.

In: a Hugging Face directory (or its config.json as a mapping) and EngineSettings. Out: one sentence saying why the
engine cannot run the model or the learner cannot train it, or None; the ids that end a sequence. Both engines refuse
by these rules, and `raylign check` asks them first. Left out: vLLM, torch and transformers, so that a config check
stays fast; memory plans.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.engines.interface import EngineSettings

DTYPES = ("bfloat16", "float16", "float32")
CPU_HEAD_MULTIPLE = 32
"""vLLM's CPU attention kernels come in head sizes that are multiples of this."""


def read_model_config(model_path: str) -> dict[str, Any]:
    """config.json of a Hugging Face directory. ValueError if there is none."""
    path = Path(model_path) / "config.json"
    if not path.is_file():
        raise ValueError(f"{model_path} has no config.json: give a Hugging Face model directory")
    return json.loads(path.read_text())


def unsupported_reason(config: Mapping[str, Any], settings: EngineSettings, device: str = "cpu") -> str | None:
    """Why vLLM on `device` ("cpu" or "cuda") cannot run this model with these settings; None if it can."""
    text = config.get("text_config", config)
    heads = int(text["num_attention_heads"])
    head_dim = int(text.get("head_dim") or int(text["hidden_size"]) // heads)
    longest = text.get("max_position_embeddings")
    if settings.dtype not in DTYPES:
        return f"dtype must be one of {', '.join(DTYPES)}, got {settings.dtype}"
    if device == "cpu" and head_dim % CPU_HEAD_MULTIPLE:
        return (
            f"vLLM on CPU needs a head size that is a multiple of {CPU_HEAD_MULTIPLE}, this model's is {head_dim}: "
            "use another model, the torch engine, or a GPU"
        )
    if longest is not None and settings.max_model_len > int(longest):
        return f"max_model_len {settings.max_model_len} is past the model's {longest} positions: lower it"
    if heads % settings.tensor_parallel:
        return f"{heads} attention heads cannot be split over tensor_parallel {settings.tensor_parallel}: use a divisor"
    return None


def untrainable_reason(config: Mapping[str, Any], max_length: int) -> str | None:
    """Why the learner cannot train this model on sequences of up to `max_length` tokens; None if it can. It packs
    samples behind a block mask of full causal attention: a window that is narrower, and layers that are no attention at
    all, would be trained as another model than the engine runs."""
    text = config.get("text_config", config)
    kinds = set(text.get("layer_types") or ())
    if strange := kinds - {"full_attention", "sliding_attention"}:
        return f"its layers of kind {', '.join(sorted(strange))} cannot be packed: use a model of attention layers"
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    if window and kinds != {"full_attention"} and max_length > int(window):
        return (
            f"its attention sees {window} tokens back and would be trained on more: lower model.max_length to {window}"
        )
    return None


def end_tokens(model_path: str) -> tuple[int, ...]:
    """Ids that end a sequence, ascending: what generation_config.json and config.json name as `eos_token_id`, and the
    tokenizer's own end-of-sequence token (chat models often name their end of turn only there)."""
    root = Path(model_path)
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (root / name).is_file():
            found = json.loads((root / name).read_text()).get("eos_token_id")
            ids.update([found] if isinstance(found, int) else found or [])
    table, texts = root / "tokenizer.json", set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        eos = json.loads((root / name).read_text()).get("eos_token") if (root / name).is_file() else None
        texts.add(eos["content"] if isinstance(eos, dict) else eos)
    if table.is_file():
        ids.update(t["id"] for t in json.loads(table.read_text())["added_tokens"] if t["content"] in texts)
    return tuple(sorted(ids))


def room(prompt_tokens: int, max_tokens: int, settings: EngineSettings) -> int:
    """How many tokens a request may make: its own limit, cut to what fits after its prompt. ValueError if none does."""
    if not prompt_tokens:
        raise ValueError("a prompt needs at least one token")
    if prompt_tokens >= settings.max_model_len:
        raise ValueError(
            f"a prompt of {prompt_tokens} tokens leaves no room within max_model_len {settings.max_model_len}: "
            "raise it or truncate prompts"
        )
    return min(max_tokens, settings.max_model_len - prompt_tokens)


def refuse_sleep(settings: EngineSettings, running: int) -> None:
    """RuntimeError for an engine that may not give up its memory now."""
    if not settings.sleep_level:
        raise RuntimeError("sleep of an engine whose sleep_level is 0: give it 1 or 2 at its start")
    if running:
        raise RuntimeError(f"sleep with {running} requests under way, whose cache it would drop: abort them first")
