"""One run from start to end: open the directory, connect to Ray, start the workers, run the loop, close everything.

In: a checked config and a run directory. Out: exit by return (done) or RunFailed. Where a supervisor keeps the cluster
(life/keeper.py), workers outlive a driver that dies, and the next goes on with them from the last commit; else the
driver owns its workers, and Ray reaps them with it. Left out: checks of the input (commands/check.py), the loops.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from actors.models.pretrained import resolve_model
from cluster import asynchronous, dpo, one_step_off, online_dpo, partial, ppo
from cluster.config import Config, ConfigError, Problem
from cluster.config.placement import SCRATCH, Placement, logical_cpus, plan, shortage
from cluster.config.rules.recovery import longest_wait_s
from cluster.config.rules.resuming import FREE_TO_CHANGE, changed_keys
from cluster.config.transport import hardware_lacks
from cluster.errors import RunFailed, StepLost, UserError
from cluster.inputs.online import load_inputs, load_tokenizer, reward_specs
from cluster.inputs.stored import load_stored_inputs
from cluster.life.connection import Cluster, kept
from cluster.life.stuck import end_stuck
from cluster.roles.stacks import FOLDER, tell_when_asked
from cluster.run.control import ControlServer
from cluster.run.directory import RunDirectory
from cluster.run.records.console import Console, Header
from cluster.run.records.metrics import EventsWriter, MetricsWriter
from cluster.run.records.trackers import open_trackers
from cluster.run.watchdog import Watchdog
from cluster.training import recovery
from cluster.training.ending import Outcome, finish
from cluster.training.job import Job
from cluster.training.offline import OfflineJob, start_offline_workers
from cluster.training.online_pairs import OnlinePairsJob
from cluster.training.parts.logbook import Run
from cluster.training.parts.online_workers import start_online_workers
from cluster.training.policy_gradient import PolicyGradientJob
from cluster.training.preferences import PreferenceJob
from cluster.training.recovery import last_commit, step_of
from cluster.training.reward_modelling import RewardModelJob
from cluster.training.streaming import StreamingJob
from cluster.training.supervised import SupervisedJob
from cluster.workers import LEASE, end_living

WATCHDOG_MARGIN = 1.5
AHEAD = {"partial": partial.train, "one_step_off": one_step_off.train, "asynchronous": asynchronous.train}
"""Schedules whose generation runs ahead of learning, and their pages."""
J = TypeVar("J", bound=Job)


def run(
    config: Config, directory: RunDirectory, *, resume: bool, console: Console, again: str | None = None
) -> Outcome:
    """Train. The directory was created or attached by the caller. again: what resumes it, if not this run."""
    if resume:
        _refuse_other_config(config, directory)
    again = again or f"raylign train CONFIG --run-dir {directory} --resume"
    with directory.lock():
        os.environ[FOLDER] = str(directory.logs / "stacks")
        tell_when_asked()
        directory.write_config(config)
        model_path = resolve_model(config.model.path)
        # Cutting back replaces events.jsonl: whoever opened it before would write into the file that is gone.
        commit, damaged = last_commit(directory) if resume else (None, [])
        events = EventsWriter(directory)
        for problem in damaged:
            events.write("damaged", problem)
            console.event(f"skipping a damaged checkpoint: {problem}")

        def open_metrics(commit: Path | None, resumed: bool = True) -> MetricsWriter:
            return MetricsWriter(
                directory,
                open_trackers(directory, config, resumed_step=step_of(commit) if resumed else None),
                on_problem=lambda name, error: console.event(f"{name} stopped taking metrics: {error}"),
            )

        opened: Run | None = None
        try:
            with (
                _told(directory, events, console, again),
                _cluster(config, directory) as cluster,
            ):
                placement = _placement(config, cluster)
                console.start(_header(config, placement, step_of(commit)))
                opened = Run(config, directory, open_metrics(commit, resume), events, console, model_path)
                # Before Ray is left: a thread of the pool that called a worker afterwards would start a new Ray.
                with _whole(opened, placement, commit) as (job, steps):
                    job.begin(commit)
                    events.write("start", f"running from step {job.state.step}", job.state.step)
                    with ControlServer(directory, job.verbs()), _watched(job):
                        recovery.train(job, steps, open_metrics)
                    return finish(job, directory, console)
        finally:
            console.close()
            if opened is not None:
                opened.metrics.close()
            events.close()
            _send(directory, again)


def _send(directory: RunDirectory, again: str) -> None:
    """To where the run is kept. What cannot be sent stays here, and a resume goes on from it."""
    failed = sys.exception()
    try:
        directory.push()
    except Exception as error:  # fault boundary: of whatever store is behind the URL
        if isinstance(failed, StepLost):  # it goes on in a moment, and sends more
            return
        text = f"{directory} could not be reached ({error}); what it lacks stands in {directory.root}"
        before = f"{failed}\n" if isinstance(failed, RunFailed) else ""
        raise RunFailed(f"{before}{text}; once it can, resume with: {again}") from error


@contextmanager
def _cluster(config: Config, directory: RunDirectory) -> Iterator[Cluster]:
    """The one that is kept, under a name that is this run's and this config's alone, or one for this process."""
    there = kept()
    if there is None:
        with Cluster(config.ray.address, logical_cpus(config)) as cluster:
            yield cluster
        return
    what = hashlib.sha256(f"{directory}\n{config.model_dump_json()}".encode()).hexdigest()[:12]
    os.environ |= {LEASE: there.namespace, SCRATCH: there.scratch}
    try:
        with Cluster(there.address, 0, f"{there.namespace}-{what}-{os.getpid()}") as cluster:
            yield cluster
    finally:
        del os.environ[LEASE], os.environ[SCRATCH]


@contextmanager
def _told(directory: RunDirectory, events: EventsWriter, console: Console, again: str) -> Iterator[None]:
    """How the block failed stands in the run directory, and what resumes the run in the error."""
    try:
        yield
    except StepLost as error:  # outside of the steps: who runs this process starts it again
        events.write("lost", str(error))
        raise
    except RunFailed as error:
        events.write("failed", str(error))
        (directory.logs / "failure.txt").write_text(traceback.format_exc())
        raise RunFailed(f"{error}\nresume with: {again}") from error
    except (OSError, sqlite3.OperationalError) as error:
        if not _is_full(error):
            raise
        raise RunFailed(f"{directory} could not be written ({error}); make room and resume with: {again}") from error
    except KeyboardInterrupt:
        events.write("interrupted", "stopped by Ctrl-C")
        console.close()
        raise


def _watched(job: Job) -> Watchdog:
    """Ends this process when the run stops moving."""
    deadline_s = job.config.recovery.watchdog_s or WATCHDOG_MARGIN * longest_wait_s(job.config)
    dog = Watchdog(deadline_s, end_stuck(job.events, os.environ[FOLDER]))
    job.heard = dog.hear
    return dog


def _is_full(error: OSError | sqlite3.OperationalError) -> bool:
    """Whether the disk, or what the user may take of it, is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "full" in str(error)


def living_serve(config: Config) -> bool:
    """Whether a run can go on with the workers of the driver before, whatever weights they hold. Offline runs measure
    the initial weights first; a delta needs the version that it is one to."""
    return config.algorithm.online and config.weights.transport != "sparse_delta"


@contextmanager
def _whole(run: Run, placement: Placement, commit: Path | None) -> Iterator[tuple[Job, Callable[[], None]]]:
    """Workers first, then the job that has them, with the page that its steps are read on; all closed at the end."""
    if commit is None or not living_serve(run.config):
        end_living()
    job, steps = (_online if run.config.algorithm.online else _offline)(run, placement)
    with closing(job):
        yield job, steps


def _online(run: Run, placement: Placement) -> tuple[Job, Callable[[], None]]:
    config = run.config
    with ExitStack() as undo:
        workers = start_online_workers(run, placement, reward_specs(config), Path.cwd())
        undo.callback(workers.close)
        tokenizer = load_tokenizer(config, run.model_path)
        given = (run, workers, load_inputs(config, tokenizer), tokenizer)
        ahead = AHEAD.get(config.rollout.schedule.kind)
        if config.algorithm.name == "online_dpo":
            made = _read_on(online_dpo.train, OnlinePairsJob(*given))
        elif ahead is None:
            made = _read_on(ppo.train, PolicyGradientJob(*given))
        else:
            made = _read_on(ahead, StreamingJob(*given))
        undo.pop_all()
    return made


def _offline(run: Run, placement: Placement) -> tuple[Job, Callable[[], None]]:
    config = run.config
    kinds: dict[str, type[OfflineJob[Any]]] = {"sft": SupervisedJob, "reward_model": RewardModelJob}
    kind = kinds.get(config.algorithm.name, PreferenceJob)
    with ExitStack() as undo:
        workers = start_offline_workers(run, placement)
        undo.callback(workers.close)
        inputs = load_stored_inputs(config, load_tokenizer(config, run.model_path))
        made = _read_on(dpo.train, kind(run, workers, inputs))
        undo.pop_all()
    return made


def _read_on(page: Callable[[J], None], job: J) -> tuple[Job, Callable[[], None]]:
    """A job and what runs its steps: a page that reads no other kind's verbs."""
    return job, lambda: page(job)


def _placement(config: Config, cluster: Cluster) -> Placement:
    # Threads follow the cores of a machine, this one standing for all: a cluster's logical CPUs are a sum of promises.
    gpus = cluster.resources()[1]
    if config.ray.on_demand is not None:  # what is up now says nothing of what will be
        gpus = math.inf if config.ray.on_demand == "cuda" else 0.0
    placement = plan(config, os.cpu_count() or 1, gpus)
    problem = shortage(placement, gpus) or hardware_lacks(config, placement.device)
    if problem is not None:
        raise ConfigError(config.name, [Problem("placement", problem)])
    return placement


def _header(config: Config, placement: Placement, done: int) -> Header:
    parts = ", ".join(f"{r.count} {r.role}{'s' if r.count > 1 else ''}" for r in placement.roles)
    where = f"{placement.device}, {os.cpu_count()} cores; {parts}"
    return Header(config.name, config.algorithm.name.upper(), config.model.path, where, config.steps, max(0, done))


def _refuse_other_config(config: Config, directory: RunDirectory) -> None:
    changed = changed_keys(directory.read_config(), config.model_dump(mode="json"), FREE_TO_CHANGE)
    if changed:
        raise UserError(
            f"{directory} was started with other settings of {', '.join(changed)}; a resume may change only "
            f"{', '.join(FREE_TO_CHANGE)}: restore them or start a new run directory"
        )
