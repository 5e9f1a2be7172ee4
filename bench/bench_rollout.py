"""Rollout stage tokens/s against vllm.LLM.generate on the same prompts, lengths and number of sequences.

One engine is in memory at a time, so the two take turns by process: each is started, warmed up and measured in a
child of this bench, in turns. Tokens are response tokens; both are told to ignore the end of sequence, so that both
make exactly the same number.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

PROMPTS, SAMPLES, LENGTH, ROUNDS, TURNS = 8, 8, 24, 3, 2


def main() -> None:
    from bench.tools.common import table

    rates: dict[str, list[float]] = {"vllm.LLM.generate": [], "Raylign rollout": []}
    for _ in range(TURNS):
        for name in rates:
            out = subprocess.run(
                [sys.executable, "-m", "bench.bench_rollout", name], capture_output=True, text=True, check=True
            )
            rates[name].append(json.loads(out.stdout.splitlines()[-1]))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    base = medians["vllm.LLM.generate"]
    table(
        f"Rollout, SmolLM2-135M bfloat16, {PROMPTS * SAMPLES} sequences of {LENGTH} tokens, median of {TURNS} starts",
        ["", "response tokens/s", "ratio"],
        [[name, rate, rate / base] for name, rate in medians.items()],
    )


def peer() -> float:
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind")
    from vllm import LLM, SamplingParams

    from bench.tools.common import model_path, prompts, seconds

    model = model_path()
    engine = LLM(
        str(model),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=256,
        kv_cache_memory_bytes=1 << 30,
        max_num_seqs=PROMPTS * SAMPLES,
    )
    inputs = [{"prompt_token_ids": list(p.token_ids)} for p in prompts(PROMPTS, model)]
    params = SamplingParams(n=SAMPLES, temperature=1.0, max_tokens=LENGTH, ignore_eos=True, logprobs=0)
    work = lambda: engine.generate(inputs, params, use_tqdm=False)  # noqa: E731
    work()
    return PROMPTS * SAMPLES * LENGTH / statistics.median(seconds(work) for _ in range(ROUNDS))


def ours() -> float:
    from actors.engines.interface import EngineSettings
    from actors.engines.vllm.engine import VllmEngine
    from actors.rollouts.worker import RolloutWorker
    from actors.types import PolicyVersion, SamplingSettings
    from bench.tools.common import model_path, prompts, seconds

    model = model_path()
    worker = RolloutWorker(VllmEngine(EngineSettings(str(model), max_model_len=256, max_num_seqs=PROMPTS * SAMPLES)))
    worker.adopt(PolicyVersion(0, "from disk"))
    inputs = prompts(PROMPTS, model)
    sampling = SamplingSettings(max_tokens=LENGTH, min_tokens=LENGTH, samples_per_prompt=SAMPLES)
    work = lambda: worker.generate(inputs, sampling, 0)  # noqa: E731
    work()
    return PROMPTS * SAMPLES * LENGTH / statistics.median(seconds(work) for _ in range(ROUNDS))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print(json.dumps(ours() if sys.argv[1] == "Raylign rollout" else peer()))
