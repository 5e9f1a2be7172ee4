"""A GRPO step against TRL's GRPOTrainer: SmolLM2-135M, 32 completions a step (4 prompts x 8), 24 tokens each, k3 KL,
bfloat16, all cores. Both generate, score, and update; both keep a reference.

Each runs in its own process, in turns. TRL is left at its defaults but for the above. Raylign's seconds are a step's of
a whole `raylign train`, publish and proof included; the first step of each (warm-up) is left out.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

STEPS, PROMPTS, SAMPLES, LENGTH, TURNS = 5, 4, 8, 24, 2


def main() -> None:
    from bench.tools.common import table

    names = {"TRL GRPOTrainer": "trl", "Raylign": "raylign"}
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(TURNS):
        for name, which in names.items():
            command = [sys.executable, "-m", "bench.bench_grpo_trl", which]
            out = subprocess.run(command, capture_output=True, text=True)
            if out.returncode:
                sys.exit(out.stdout[-2000:] + out.stderr[-2000:])
            found[name].append(json.loads(out.stdout.splitlines()[-1]))
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    base = medians["TRL GRPOTrainer"]
    table(
        f"GRPO step, SmolLM2-135M bfloat16, {PROMPTS} x {SAMPLES} completions, {LENGTH} tokens, median of {TURNS} runs",
        ["", "s a step", "ratio"],
        [[name, seconds, base / seconds] for name, seconds in medians.items()],
    )


def raylign() -> float:
    import yaml

    from bench.tools.common import MODEL, TASK

    recipe = {
        "name": "bench",
        "steps": STEPS + 1,
        "algorithm": {"name": "grpo", "kl": {"place": "loss", "kind": "k3", "coef": 0.04}},
        "model": {"path": MODEL, "max_length": 256},
        "data": {"reasoning_gym": {"task": TASK["task"], "params": TASK["task_params"], "size": 500}},
        "reward": {"functions": {"correct": {"function": "last_number"}}},
        "rollout": {
            "prompts_per_step": PROMPTS,
            "sampling": {"samples_per_prompt": SAMPLES, "max_tokens": LENGTH, "min_tokens": LENGTH},
        },
        "learner": {"micro_batch_tokens": 1024, "optimizer": {"lr": 1e-6}},
        "checkpoint": {"every_steps": 1000, "export": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        run = Path(folder) / "run"
        subprocess.run(
            [sys.executable, "-m", "cluster.cli", "train", str(path), "--run-dir", str(run)],
            check=True,
            stdout=sys.stderr,
        )
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["time/step_s"] for row in rows if row["step"] > 1)


def trl() -> float:
    import time

    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from actors.data import PromptSettings, load_prompts
    from bench.tools.common import TASK, THREADS, model_path

    torch.set_num_threads(THREADS)
    model = str(model_path())
    source = load_prompts(PromptSettings(size=500, **TASK), AutoTokenizer.from_pretrained(model))
    asked = [[{"role": "user", "content": row.data["prompt"]}] for row in source.rows]
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            times.append(time.perf_counter())

        def on_train_end(self, *args, **kwargs):
            times.append(time.perf_counter())

    def reward(completions, **kwargs):
        return [float(len(str(c)) % 7) for c in completions]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=STEPS + 1,
            per_device_train_batch_size=PROMPTS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=LENGTH,
            beta=0.04,
            learning_rate=1e-6,
            bf16=True,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1000,
            generation_kwargs={"min_new_tokens": LENGTH},
            model_init_kwargs={"dtype": "bfloat16"},
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": asked}),
            callbacks=[Clock()],
        )
        trainer.train()
    laps = [b - a for a, b in pairwise(times)]
    return statistics.median(laps[1:])


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print(json.dumps({"trl": trl, "raylign": raylign}[sys.argv[1]]()))
