"""The run directory: where each file of a run stands, who may write it, and how a resume cuts it back to a commit.

In: a local path, or an fsspec URL (`s3://bucket/run`) that a local working copy is pushed to and pulled from: SQLite
and file locks need a local disk. Out: paths, atomic writes, a lock that refuses a second driver.
Left out: what the files mean (cluster/run/records/metrics.py, cluster/run/records/samples.py, ledger, checkpoints). The
lock guards the local directory; two machines that work on copies of one URL are not kept apart.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from actors.durable import fsync
from actors.models.pretrained import cache_home
from cluster.config.loading.retired import without_retired
from cluster.config.schema import Config
from cluster.errors import UserError

SAMPLES_NAME = re.compile(r"step-(\d+)\.parquet")
FOLDERS = ("samples", "logs", "checkpoints", "policy", "tensorboard")


class RunDirectory:
    """Names of a run's files under `root`. Making one touches nothing; `create` and `attach` check and prepare."""

    def __init__(self, path: str | Path) -> None:
        text = str(path)
        self.url = text if "://" in text and not text.startswith("file://") else None
        """Where `push` copies to and `pull` copies from; None for a local run."""
        self.root = _working_copy(text) if self.url else Path(text.removeprefix("file://")).expanduser().absolute()
        self.config_file = self.root / "config.yaml"
        self.metrics_file = self.root / "metrics.jsonl"
        self.events_file = self.root / "events.jsonl"
        self.timeline_file = self.root / "timeline.jsonl"
        self.ledger_file = self.root / "ledger.sqlite"
        self.tracking_file = self.root / "tracking.json"
        self.frozen_file = self.root / "frozen.json"
        self.report_file = self.root / "report.html"
        self.lock_file = self.root / "lock"
        self.samples = self.root / "samples"
        self.logs = self.root / "logs"
        self.checkpoints = self.root / "checkpoints"
        self.policies = self.root / "policy"
        self.tensorboard = self.root / "tensorboard"
        self._pushed: dict[str, tuple[int, int]] = {}
        self._owed = False
        """A push began, and none since has sent everything."""

    def __str__(self) -> str:
        return self.url or str(self.root)

    @classmethod
    def create(cls, path: str | Path) -> RunDirectory:
        """Prepare an empty run directory. UserError where a run already stands."""
        run = cls(path)
        if run.url:
            run.pull()
        if run.root.exists() and not run.root.is_dir():
            raise UserError(f"{run} is a file; give a directory with --run-dir")
        taken = [file.name for file in (run.config_file, run.metrics_file, run.ledger_file) if file.exists()]
        if taken:
            raise UserError(
                f"{run} already holds a run ({taken[0]}); add --resume to continue it, or give another --run-dir"
            )
        run._make_folders()
        return run

    @classmethod
    def attach(cls, path: str | Path) -> RunDirectory:
        """The run that stands at `path`. UserError if there is none."""
        run = cls(path)
        if run.url:
            run.pull()
        if not run.config_file.is_file():
            raise UserError(f"{run} holds no run (no config.yaml in it); give a directory that `raylign train` made")
        return run

    def _make_folders(self) -> None:
        try:
            for name in FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.root} cannot be made ({error.strerror}); give a writable --run-dir") from error

    def samples_file(self, step: int) -> Path:
        return self.samples / f"step-{step:06d}.parquet"

    def skipped_batch(self, step: int) -> Path:
        """The columns of a step that was skipped because its loss or gradient was not finite."""
        return self.logs / f"nonfinite-step-{step}.npz"

    def sample_steps(self) -> list[int]:
        """Steps whose samples are on disk, in order."""
        found = (SAMPLES_NAME.fullmatch(file.name) for file in self.samples.glob("step-*.parquet"))
        return sorted(int(match[1]) for match in found if match)

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def policy(self, step: int) -> Path:
        return self.policies / f"step-{step}"

    def write_config(self, config: Config) -> None:
        """Save the resolved config: every key, defaults included, in the schema's order."""
        write_atomic(
            self.config_file, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        )

    def read_config(self) -> dict[str, Any]:
        """The saved config as plain data; unvalidated, so that runs of other versions can be read too."""
        return without_retired(yaml.safe_load(self.config_file.read_text()))

    def in_use(self) -> bool:
        """Whether a driver works here."""
        if not self.lock_file.is_file():
            return False
        with self.lock_file.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @contextmanager
    def lock(self, clock: Callable[[], float] = time.time) -> Iterator[None]:
        """Hold the directory for one driver. UserError naming the holder if another has it.

        The kernel drops the lock with its process, so a killed driver never leaves a stale one.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self.lock_file.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.root} is in use by {_holder(self.lock_file)}; stop that run or give another --run-dir"
                ) from None
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "time": clock()}) + "\n")
            file.flush()
            try:
                yield
            finally:
                if not self._owed:  # else the working copy stays the one that counts, as after a kill
                    file.truncate(0)
                fcntl.flock(file, fcntl.LOCK_UN)

    def truncate_after(self, step: int) -> None:
        """Cut metrics, events and samples back to `step`, the last one that a commit covers (-1 keeps nothing of any
        step). Events without a step stay. Each file is replaced whole, so a crash in between leaves only files that
        the next call cuts again; the report goes too, it would show steps that never counted."""
        for file in (self.metrics_file, self.events_file, self.timeline_file):
            if file.exists():
                kept = [line for line, row in _complete_lines(file) if (at := row.get("step")) is None or at <= step]
                write_atomic(file, "".join(kept))
        for number in self.sample_steps():
            if number > step:
                self.samples_file(number).unlink()
        if self.samples.is_dir():
            fsync(self.samples)
        for policy in self.policies.glob("step-*"):
            if int(policy.name.rpartition("-")[2]) > step:  # of a history that does not count
                shutil.rmtree(policy)
        self.report_file.unlink(missing_ok=True)

    def push(self, only: Path | None = None, running: bool = False) -> None:
        """Make the URL hold what the working copy holds: changed files, manifests last; removed files are removed.
        only: push this one file and nothing else. running: a driver works here, so neither files that are half written
        nor its ledger, of which checkpoints hold copies."""
        if self.url is None:
            return
        import fsspec

        self._owed = True
        there, base = fsspec.core.url_to_fs(self.url)
        here = {
            _relative(file, self.root): file for file in ([only] if only else self.root.rglob("*")) if file.is_file()
        }
        here.pop(self.lock_file.name, None)
        if running:
            half = {name for name in here if any(part.startswith(".") for part in name.split("/"))}
            here = {n: f for n, f in here.items() if n not in half and not n.startswith(self.ledger_file.name)}
        for name in sorted(here, key=lambda name: (name.endswith("manifest.json"), name)):
            stat = here[name].stat()
            if self._pushed.get(name) != (stat.st_size, stat.st_mtime_ns):
                there.makedirs(f"{base}/{name}".rpartition("/")[0], exist_ok=True)
                there.put_file(str(here[name]), f"{base}/{name}")
                self._pushed[name] = (stat.st_size, stat.st_mtime_ns)
        for name in () if only else set(self._pushed) - set(here):
            there.rm_file(f"{base}/{name}")
            del self._pushed[name]
        self._owed = only is not None or running

    def pull(self) -> None:
        """Make the working copy hold what the URL holds. One that a driver holds is ahead of the URL and left alone."""
        if self.url is None:
            return
        import fsspec

        there, base = fsspec.core.url_to_fs(self.url)
        names = [name.removeprefix(base).lstrip("/") for name in (there.find(base) if there.exists(base) else [])]
        self.root.mkdir(parents=True, exist_ok=True)
        with self.lock_file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            if self.lock_file.stat().st_size:  # its driver was killed before it could push, or its push failed
                return
            for file in [file for file in self.root.rglob("*") if file.is_file()]:
                if _relative(file, self.root) not in {*names, self.lock_file.name}:
                    file.unlink()
            self._pushed = {}
            for name in names:
                target = self.root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                there.get_file(f"{base}/{name}", str(target))
                self._pushed[name] = (target.stat().st_size, target.stat().st_mtime_ns)


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _working_copy(url: str) -> Path:
    return cache_home() / "runs" / hashlib.sha256(url.encode()).hexdigest()[:16]


def _holder(lock_file: Path) -> str:
    """Who wrote the lock; a driver that is just starting has not written yet."""
    try:
        row = json.loads(lock_file.read_text())
    except json.JSONDecodeError:
        return "another driver"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["time"]))
    return f"process {row['pid']} on {row['host']} (since {since})"


def _complete_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each whole line with its object. A last line without its newline was torn by a crash and is left out."""
    lines = file.read_text().split("\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{number} is not a JSON object ({error.msg}); remove that line") from error
        yield line + "\n", row


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; empty if it does not exist. UserError naming a malformed line."""
    return [row for _, row in _complete_lines(file)] if file.exists() else []


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`. On success it is synced and renamed over `path`; on an error it is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` whole: a reader, or a crash, sees the old content or the new, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
