"""Where metrics go besides metrics.jsonl: TensorBoard always, W&B and MLflow when the config names them.

In: a run directory, the `tracking` section, the step resumed from. Out: trackers with two verbs, `log` and `close`.
A tracker's own id is kept in tracking.json, so that a resumed run goes on in the same W&B or MLflow run. Packages are
imported when asked for; a missing one is a UserError before anything starts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from cluster.config.schema import Config
from cluster.errors import UserError
from cluster.run.directory import RunDirectory, write_atomic


class Tracker(Protocol):
    def log(self, step: int, metrics: Mapping[str, float], time_s: float) -> None:
        """Record a step's finite metrics. time_s: unix seconds."""

    def close(self, *, failed: bool) -> None:
        """Flush and end."""


def open_trackers(run: RunDirectory, config: Config, resumed_step: int | None = None) -> dict[str, Tracker]:
    """The trackers of a run. resumed_step: the last committed step that the run continues from, None if new."""
    trackers: dict[str, Tracker] = {"tensorboard": TensorBoardTracker(run, resumed_step)}
    if config.tracking.wandb is not None:
        trackers["wandb"] = WandbTracker(run, config, config.tracking.wandb)
    if config.tracking.mlflow is not None:
        trackers["mlflow"] = MlflowTracker(run, config, config.tracking.mlflow)
    return trackers


class TensorBoardTracker:
    """Writes event files with TensorBoard's own writer, which needs neither torch nor TensorFlow."""

    def __init__(self, run: RunDirectory, resumed_step: int | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run.tensorboard))
        if resumed_step is not None:  # tells TensorBoard to drop what an earlier life logged past the commit
            start = resumed_step + 1
            self._writer.add_event(Event(step=start, file_version="brain.Event:2"))
            self._writer.add_event(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def log(self, step: int, metrics: Mapping[str, float], time_s: float) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(self._event(wall_time=time_s, step=step, summary=self._summary(value=values)))
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class WandbTracker:
    """W&B. Its own step counter refuses to go back, so rows carry `step` and charts are drawn against it."""

    def __init__(self, run: RunDirectory, config: Config, arguments: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("tracking.wandb is set but wandb is not installed; run `pip install wandb`") from error
        known = _read_ids(run).get("wandb")
        defaults = {
            "name": config.name,
            "dir": str(run.root),
            "resume": "allow",
            "config": config.model_dump(mode="json"),
        }
        settings = {**defaults, **arguments}
        if known:
            settings["id"] = known
        self._run = wandb.init(**settings)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        _keep_id(run, "wandb", self._run.id)

    def log(self, step: int, metrics: Mapping[str, float], time_s: float) -> None:
        self._run.log({**metrics, "step": step})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


class MlflowTracker:
    """MLflow, by its client: no global active run that a user's reward function could disturb."""

    def __init__(self, run: RunDirectory, config: Config, arguments: Mapping[str, Any]) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
        except ImportError as error:
            raise UserError(
                "tracking.mlflow is set but mlflow is not installed; run `pip install mlflow-skinny`"
            ) from error
        unknown = set(arguments) - {"tracking_uri", "experiment"}
        if unknown:
            raise UserError(f"tracking.mlflow.{sorted(unknown)[0]}: unknown key; valid: tracking_uri, experiment")
        self._metric = Metric
        self._client = MlflowClient(tracking_uri=arguments.get("tracking_uri"))
        self._id = _read_ids(run).get("mlflow")
        if self._id is None:
            name = arguments.get("experiment", "raylign")
            experiment = self._client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self._client.create_experiment(name)
            self._id = self._client.create_run(number, run_name=config.name).info.run_id
            flat = _flatten(config.model_dump(mode="json"))
            params = [Param(key, str(value)[:500]) for key, value in flat.items()]
            for begin in range(0, len(params), 100):  # the server takes at most 100 parameters a call
                self._client.log_batch(self._id, params=params[begin : begin + 100])
            _keep_id(run, "mlflow", self._id)
        else:
            self._client.update_run(self._id, status="RUNNING")

    def log(self, step: int, metrics: Mapping[str, float], time_s: float) -> None:
        rows = [self._metric(name, value, int(time_s * 1000), step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=rows)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, status="FAILED" if failed else "FINISHED")


def _read_ids(run: RunDirectory) -> dict[str, str]:
    return json.loads(run.tracking_file.read_text()) if run.tracking_file.exists() else {}


def _keep_id(run: RunDirectory, tracker: str, identity: str) -> None:
    write_atomic(run.tracking_file, json.dumps({**_read_ids(run), tracker: identity}) + "\n")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(_flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value})
    return flat
