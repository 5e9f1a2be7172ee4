"""Where a model comes from: a reference in, a Hugging Face directory that transformers and vLLM load out.

In: a local directory; `package:PACKAGE/FILE.gguf`, a GGUF file inside an installed package, converted once to bfloat16
safetensors with its tokenizer and chat template in a cache; or a hub id. Out: a path. The cache is $RAYLIGN_HOME, else
~/.cache/raylign; a conversion is made beside its target under a lock and renamed into place, so what exists is whole.
`python -m actors.models.pretrained REF` prints the path. Left out: loading for training or inference.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE_PREFIX = "package:"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
CONVERSION = 1
"""Part of the cache key: raise it when the conversion writes something else."""


class ModelNotFound(ValueError):
    """The reference leads to no model. One sentence with the fix."""


def cache_home() -> Path:
    """$RAYLIGN_HOME, else ~/.cache/raylign."""
    return Path(os.environ.get("RAYLIGN_HOME") or Path.home() / ".cache" / "raylign")


def resolve_model(ref: str, cache_dir: Path | None = None) -> Path:
    """The model's directory, converted or downloaded if need be. ModelNotFound says what to do otherwise."""
    if ref.startswith(PACKAGE_PREFIX):
        return _convert(_file_in_package(ref), ref, Path(cache_dir or cache_home()) / "models")
    path = Path(ref).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFound(f"{path} holds no config.json, so it is not a Hugging Face model directory")
        return path.resolve()
    if ref.startswith((".", "/", "~")) or not HUB_ID.fullmatch(ref):
        raise ModelNotFound(
            f"there is no model directory {ref}; give one, a hub id (owner/name) or package:NAME/FILE.gguf"
        )
    return _download(ref)


def _download(hub_id: str) -> Path:
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            huggingface_hub.snapshot_download(hub_id, ignore_patterns=["*.gguf", "*.onnx", "*.h5", "*.msgpack"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(
            f"the model {hub_id!r} is no local directory and the Hugging Face hub does not give it ({first_line}); "
            "check the id and the network, or give a local directory"
        ) from error


def _file_in_package(ref: str) -> Path:
    package, _, file = ref.removeprefix(PACKAGE_PREFIX).partition("/")
    if not package.isidentifier() or not file.endswith(".gguf"):
        raise ModelNotFound(f"{ref!r} must have the form package:NAME/FILE.gguf")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise ModelNotFound(f"the package {package} is not installed, so {ref} cannot be read; run: pip install {name}")
    for location in spec.submodule_search_locations:
        if (path := Path(location) / file).is_file():
            return path
    found = sorted(p.name for place in spec.submodule_search_locations for p in Path(place).glob("*.gguf"))
    raise ModelNotFound(f"the package {package} has no file {file}; its GGUF files are: {', '.join(found) or 'none'}")


def _convert(source: Path, ref: str, models: Path) -> Path:
    """The cached conversion of a GGUF file, keyed by reference, size and the conversion's number."""
    key = hashlib.blake2b(f"{ref}/{source.stat().st_size}/{CONVERSION}".encode(), digest_size=4).hexdigest()
    target = models / f"{source.stem}-{key}"
    if target.is_dir():
        return target
    models.mkdir(parents=True, exist_ok=True)
    with _locked(models / f".{target.name}.lock"):
        if target.is_dir():  # another process made it while this one waited
            return target
        for torn in models.glob(f".{target.name}.*/"):  # left by a killed conversion: the lock says none is running
            shutil.rmtree(torn)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=models))
        try:
            convert_gguf(source, work)
            work.chmod(0o755)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def convert_gguf(source: Path, directory: Path) -> None:
    """Write `source` as bfloat16 safetensors with config, generation config, tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from actors.models.numerics import placed

    origin = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**origin)
    model = AutoModelForCausalLM.from_pretrained(**origin, dtype=torch.float32)
    _forget_quantisation(model)
    model = placed(model, torch.bfloat16)
    model.config.dtype = torch.bfloat16
    _agree_on_end(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _forget_quantisation(model: Any) -> None:
    """The weights were dequantised on loading, but the marks stay and make save_pretrained refuse."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None


def _agree_on_end(model: Any, tokenizer: Any) -> None:
    """One end-of-sequence id everywhere: the token with which the chat template ends a turn.

    Engines stop on the config's id and learners mask after it; a GGUF header may name another than the template uses.
    """
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
        ending = tokenizer.apply_chat_template(chat, tokenize=False).rpartition("A")[2].strip()
        if ending in special:
            tokenizer.eos_token = ending
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for config in (model.config, model.generation_config):
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
        config.bos_token_id = tokenizer.bos_token_id


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for the lock file; the kernel frees it when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m actors.models.pretrained REF", file=sys.stderr)
        return 2
    try:
        print(resolve_model(arguments[0]))
    except ModelNotFound as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
