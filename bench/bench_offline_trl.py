"""DPO and SFT steps against TRL's DPOTrainer and SFTTrainer: SmolLM2-135M, bfloat16, the same rows, all cores.

Each runs in its own process, in turns. TRL is left at its defaults but for batch size, dtype and length. Raylign is one
learner rank as `raylign train` runs it; DPO's seconds hold its share of measuring the reference, which happens once and
here for every row. The first two steps of each (warm-up) are left out. Memory: the process's peak resident size.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise

STEPS, WARM, TURNS, PAIRS, ROWS, WINDOW = 8, 2, 2, 8, 16, 512
REASONS = (
    "First look at both numbers.",
    "Adding them digit by digit from the right gives the sum, and a carry moves one place to the left.",
    "Checking by the opposite operation leads back to where we began.",
    "There is no rounding here, for all of them are whole numbers.",
)


def main() -> None:
    from bench.tools.common import table

    names = {"TRL": "trl", "Raylign": "raylign"}
    for kind, what in (("dpo", f"DPO, {PAIRS} pairs a step"), ("sft", f"SFT, {ROWS} rows a step")):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(TURNS):
            for name, which in names.items():
                command = [sys.executable, "-m", "bench.bench_offline_trl", which, kind]
                out = subprocess.run(command, capture_output=True, text=True)
                if out.returncode:
                    sys.exit(out.stdout[-2000:] + out.stderr[-2000:])
                found[name].append(tuple(json.loads(out.stdout.splitlines()[-1])))
        rates = {name: statistics.median(rate for rate, _ in results) for name, results in found.items()}
        peaks = {name: statistics.median(peak for _, peak in results) for name, results in found.items()}
        table(
            f"{what}, SmolLM2-135M bfloat16, median of {TURNS} runs of {STEPS} steps",
            ["", "tokens/s", "ratio", "peak GB"],
            [[name, rate, rate / rates["TRL"], peaks[name]] for name, rate in rates.items()],
        )


def conversations(count: int) -> list[dict[str, str]]:
    """Questions with answers of very different lengths, as real rows have them; the same for both sides."""
    from actors.data.preferences import generate_pairs
    from actors.data.rows import Origin
    from bench.tools.common import TASK

    rng = random.Random(0)

    def told(answer: str) -> str:
        return " ".join([*rng.choices(REASONS, k=rng.randint(0, 8)), answer])

    origin = Origin(task=TASK["task"], task_params=TASK["task_params"], size=count)
    return [
        {"prompt": p["prompt"], "chosen": told(p["chosen"]), "rejected": told(p["rejected"])}
        for p in (raw.columns for raw in generate_pairs(origin))
    ]


def stored_rows(kind: str):  # type: ignore[no-untyped-def]
    """The rows as Raylign reads them; their tokens are what both sides' rates count."""
    import pathlib

    from transformers import AutoTokenizer

    from actors.data.demonstrations import DemonstrationSettings, load_demonstrations
    from actors.data.preferences import PreferenceSettings, load_preferences
    from actors.data.rows import Origin
    from bench.tools.common import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.jsonl"
        count = STEPS * (PAIRS if kind == "dpo" else ROWS)
        path.write_text("".join(json.dumps(row) + "\n" for row in conversations(count)))
        if kind == "dpo":
            return load_preferences(PreferenceSettings(Origin(path=str(path))), tokenizer).rows
        settings = DemonstrationSettings(Origin(path=str(path)), completion_column="chosen")
        return load_demonstrations(settings, tokenizer).rows


def tokens_of(rows) -> int:  # type: ignore[no-untyped-def]
    """Tokens as a trainer without shared prompts sees them: each response with its prompt."""
    return sum(len(row.prompt_tokens) + len(ids) for row in rows for ids in row.responses)


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def raylign(kind: str) -> tuple[float, float]:
    from bench.tools.common import THREADS, as_a_worker, model_path

    as_a_worker()
    import torch

    from actors.data.batches import demonstration_batch, pair_batch
    from actors.response_mask import row_sums
    from actors.types import ScoreBatch
    from cluster.roles.learner import LearnerRole, LearnerSpec
    from learners.engines.settings import ModelSettings, OptimizerSettings, ZeroSettings
    from learners.methods.method import LearnerSettings, StepInputs, SupervisedSettings, UpdateSettings, assemble
    from learners.methods.presets import PreferenceSettings

    torch.set_num_threads(THREADS)
    rows = stored_rows(kind)
    settings = LearnerSettings(
        model=ModelSettings(str(model_path())),
        optimizer=OptimizerSettings(lr=1e-6),
        zero=ZeroSettings(),
        update=UpdateSettings(micro_batch_tokens=1024),
    )
    trains = PreferenceSettings() if kind == "dpo" else SupervisedSettings()
    role = LearnerRole(LearnerSpec(trains, settings, None, None, "cpu", 600.0), 0, 1)
    role.build(*role.rendezvous())
    size, make = (PAIRS, pair_batch) if kind == "dpo" else (ROWS, demonstration_batch)
    laps, counts = [], []
    for step in range(STEPS):
        mine = rows[step * size : (step + 1) * size]
        batch = make([(row, row.id) for row in mine])
        began = time.perf_counter()
        sums = None
        if kind == "dpo":
            column = assemble([role.policy_logprobs(None, batch)], len(batch.token_ids))
            sums = row_sums(column, batch)[:, 0]
        scores = ScoreBatch([0.0] * len(batch), {})
        role.policy.update(StepInputs(step, batch, scores, row_reference=sums))
        laps.append(time.perf_counter() - began)
        counts.append(tokens_of(mine))
    return sum(counts[WARM:]) / sum(laps[WARM:]), peak_gb()


def trl(kind: str) -> tuple[float, float]:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from bench.tools.common import THREADS, model_path

    torch.set_num_threads(THREADS)
    rows = stored_rows(kind)
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            times.append(time.perf_counter())

        def on_train_end(self, *args, **kwargs):
            times.append(time.perf_counter())

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    given = [
        {"prompt": said("user", row["prompt"])}
        | (
            {side: said("assistant", row[side]) for side in ("chosen", "rejected")}
            if kind == "dpo"
            else {"completion": said("assistant", row["chosen"])}
        )
        for row in conversations(len(rows))
    ]
    size = PAIRS if kind == "dpo" else ROWS
    config, trainer = (DPOConfig, DPOTrainer) if kind == "dpo" else (SFTConfig, SFTTrainer)
    with tempfile.TemporaryDirectory() as folder:
        arguments = config(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=size,
            max_length=WINDOW,
            learning_rate=1e-6,
            bf16=True,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1000,
            gradient_checkpointing=False,  # on by default; ours is off, and on would make TRL slower
            model_init_kwargs={"dtype": "bfloat16"},
        )
        trainer(
            model=str(model_path()), args=arguments, train_dataset=Dataset.from_list(given), callbacks=[Clock()]
        ).train()
    laps = [b - a for a, b in pairwise(times)]
    return tokens_of(rows) / STEPS * (STEPS - WARM) / sum(laps[WARM:]), peak_gb()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print(json.dumps({"trl": trl, "raylign": raylign}[sys.argv[1]](sys.argv[2])))
