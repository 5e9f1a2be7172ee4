"""What a model on disk is: the hash of each of its files that decides what it computes.

In: a Hugging Face directory. Out: hashes by file name, to be kept and compared: a path says where a model lies, not
which one. Contents are hashed, not dates: a copy is the same model, and one that was overwritten is not. XXH3 reads as
fast as a disk gives; the proof is against accidents. Left out: which models a run holds still and what follows from a
change (cluster/training/parts/frozen.py), weights on their way to engines (actors/transports).
"""

from __future__ import annotations

import json
from pathlib import Path

import xxhash

WEIGHTS = (".safetensors", ".bin")
CODE = ".py"
"""A model's own, which `trust_remote_code` runs."""
CONFIG = "config.json"
OTHERS = {
    CONFIG,
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
}
CHUNK_BYTES = 16 << 20


def model_hashes(directory: Path) -> dict[str, str]:
    """Content hash of each file that a loader reads, by name, sorted. A card or a licence may change as it likes."""
    read = (f for f in directory.iterdir() if f.is_file() and (f.suffix in (*WEIGHTS, CODE) or f.name in OTHERS))
    return {file.name: _hash(file) for file in sorted(read)}


def _hash(file: Path) -> str:
    h = xxhash.xxh3_128()
    if file.name == CONFIG:
        body = json.loads(file.read_text())
        # Who saved it last: a conversion that is made anew by another release is the same model.
        body.pop("transformers_version", None)
        h.update(json.dumps(body, sort_keys=True).encode())
        return h.hexdigest()
    chunk = memoryview(bytearray(CHUNK_BYTES))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(chunk):
            h.update(chunk[:count])
    return h.hexdigest()
