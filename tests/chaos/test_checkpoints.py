"""Processes that are killed while they write checkpoints: what claims to be whole is whole, and no commit is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster.run.checkpoints import checkpoint

KILLS = int(os.environ.get("RAYLIGN_KILLS", "20"))
"""How many; `make chaos` does ten times as many."""
WRITER = """
import os, sys
from pathlib import Path
from cluster.run.checkpoints import checkpoint

folder, step = Path(sys.argv[1]), int(sys.argv[2])
while True:
    step += 1
    stage = checkpoint.open_stage(folder, step)
    (stage / "policy").mkdir()
    for name in ("driver.json", "policy/rank-0", "policy/rank-1"):
        (stage / name).write_bytes(os.urandom(300_000))
    checkpoint.commit(folder, step, stage)
    checkpoint.prune(folder, 2, set())
    print(step, flush=True)
"""


def test_no_kill_while_checkpoints_are_written_loses_one_or_leaves_one_torn(tmp_path: Path) -> None:
    draw = random.Random(0)
    print(f"{KILLS} kills")
    last = 0
    for kill in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(last)], stdout=subprocess.PIPE, text=True
        )
        try:
            last = int(writer.stdout.readline())
            time.sleep(draw.uniform(0.0, 0.05))
        finally:
            os.kill(writer.pid, signal.SIGKILL)
        said = writer.stdout.read().split()
        writer.wait(10)
        last = int(said[-1]) if said else last
        found, damaged = checkpoint.latest_whole(tmp_path)
        assert damaged == [], f"kill {kill}: {damaged}"
        assert found is not None and int(found.name.removeprefix("step-")) >= last, f"kill {kill} lost step {last}"
        last = int(found.name.removeprefix("step-"))
