"""How a policy is served: data only, so that a command and a test can read it without Ray or an engine.

In: plain numbers, and the name of an environment variable. Out: `ServeSettings`, and the hash of the key in it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from serve.policy import ServeInputError


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How the policy is served. `gpus` is per replica (tensor parallel); 0 runs on CPU."""

    replicas: int = 1
    gpus: int = 0
    cpu_threads: int = 0
    """Per replica on CPU; 0 shares the machine's cores among the replicas."""
    dtype: str = "bfloat16"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    kv_cache_gb: float = 1.0
    """On CPU. On a GPU the engine takes `gpu_memory_utilization` of it."""
    gpu_memory_utilization: float = 0.85
    max_body_bytes: int = 4 << 20
    token_sha256: str | None = None


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def token_from(variable: str | None) -> str | None:
    """The hash of the token in that environment variable; None where no token is asked for."""
    if variable is None:
        return None
    token = os.environ.get(variable, "")
    if not token:
        raise ServeInputError(f"the environment variable {variable} is empty; put the API key in it")
    return token_hash(token)
