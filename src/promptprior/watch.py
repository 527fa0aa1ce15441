"""Who watches training steps besides the log that every checkpoint keeps: TensorBoard, MLflow, several at once."""

import atexit
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from promptprior.config.mapping import stable_hash
from promptprior.errors import DiskError, SpecError
from promptprior.files import disk_errors
from promptprior.processes import is_first
from promptprior.rules.rule import Info
from promptprior.train import Watch

WatchStage = Callable[[str], Watch | None]
"""Given the name of a stage that begins, who watches its steps."""

MLFLOW_SECONDS = 2.0  # between two messages to MLflow, unless there is more to say than it takes in one
MLFLOW_POINTS = 500


def step_logs(
    tensorboard_folder: Path | None, mlflow_place: str | None, output: Path, work: str = ""
) -> list[WatchStage]:
    """Who logs the steps of a command that writes to `output`: as the settings `tensorboard` and `mlflow` say.

    `work` names a piece of it that has stages of its own. Raises SpecError as `tensorboard` and `mlflow_runs` do.
    """
    logs = [] if tensorboard_folder is None else [tensorboard(tensorboard_folder / work)]
    return logs if mlflow_place is None else [*logs, mlflow_runs(mlflow_place, output, work)]


def numbers_by_line(info: Info) -> Iterator[tuple[str, float]]:
    """Every number that a step reports, with the name of its line: one for all copies, or one for each."""
    for key, value in info.items():
        for copy, number in enumerate(value.flatten().tolist()):
            yield key if value.numel() == 1 else f"{key}/copy{copy}", number


def tensorboard(folder: Path) -> WatchStage:
    """Write every number a step reports to TensorBoard, one run per stage, one line per copy.

    Raises SpecError when the tensorboard package is missing, and when logs cannot be written there; DiskError when
    that happens later.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"{folder} (--tensorboard): {error.strerror}; expected a folder that can be written") from error
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SpecError(
            "TensorBoard logs (--tensorboard) need a package: pip install 'promptprior[tensorboard]'"
        ) from error

    def watch_stage(name: str) -> Watch | None:
        if not is_first():
            return None
        with disk_errors(folder / name):
            (folder / name).mkdir(parents=True, exist_ok=True)
        writer: SummaryWriter | None = None

        def watch(step: int, steps: int, info: Info) -> None:
            nonlocal writer
            with disk_errors(folder / name):
                if writer is None:  # of a run that goes on from a checkpoint, what was written after it is void
                    writer = SummaryWriter(str(folder / name), purge_step=step)
                for line, number in numbers_by_line(info):
                    writer.add_scalar(line, number, step)
                if step == steps:
                    writer.close()
                elif "dev_nll" in info:
                    writer.flush()  # where patience ends, a run may stop

        return watch

    return watch_stage


def mlflow_uri(place: str) -> str:
    """What MLflow calls a place: a URI as it is, a folder as the SQLite file `mlflow.db` in it.

    Raises SpecError for an empty one, and for one with a password, which saved plans would spread.
    """
    if not place.strip() or "\0" in place:
        raise SpecError(f"{place!r} (--mlflow): expected a folder, sqlite:///FILE or http://SERVER")
    if "://" not in place:
        return f"sqlite:///{Path(place).absolute() / 'mlflow.db'}"
    try:
        password = urlsplit(place).password
    except ValueError as error:
        raise SpecError(f"{place} (--mlflow): {error}; expected a folder, sqlite:///FILE or http://SERVER") from None
    if password is not None:
        raise SpecError(
            f"{place.split('://')[0]}://… (--mlflow) holds a password, and plans that are saved would show it: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
    return place


def mlflow_runs(place: str, output: Path, work: str = "") -> WatchStage:
    """Write every number a step reports to an MLflow store (see `mlflow_uri`): one run per stage, one line per copy.

    The experiment is that of MLFLOW_EXPERIMENT_NAME, or promptprior. A stage that resumes goes on in its run, which
    gets no point twice; one that begins again gets a new run. MLflow's telemetry is off unless
    MLFLOW_DISABLE_TELEMETRY says otherwise. Raises SpecError when the packages are missing, and when nothing can be
    written there; DiskError when that happens later.
    """
    what, uri = f"{place} (--mlflow)", mlflow_uri(place)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        if uri.startswith("sqlite:"):  # mlflow-skinny comes without them
            import alembic  # noqa: F401
            import sqlalchemy  # noqa: F401
    except ImportError as error:
        raise SpecError("MLflow logs (--mlflow) need packages: pip install 'promptprior[mlflow]'") from error
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    name, artifacts = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "promptprior", None
    try:
        if "://" not in place:
            Path(place).mkdir(parents=True, exist_ok=True)
            artifacts = (Path(place).absolute() / "artifacts").as_uri()
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name, artifact_location=artifacts)
    except Exception as error:  # of the disk, the database, the network, MLflow
        raise SpecError(
            f"{what}: {_first_line(error)}; expected a folder that can be written, sqlite:///FILE or http://SERVER"
        ) from error

    def watch_stage(stage: str) -> Watch | None:
        if not is_first():
            return None
        identity = stable_hash([str(output.absolute()), work, stage])
        points, logged, last_send, run, at_dev = list[Any](), dict[str, int](), time.monotonic(), "", False

        def begin(step: int) -> str:
            # The run of a stage whose first step here is this one; `logged` gets the last step it has of each number.
            tag = f"tags.`promptprior.stage` = '{identity}'"
            latest = client.search_runs([experiment], tag, max_results=1, order_by=["attributes.start_time DESC"])
            if latest and step > 1:
                known = latest[0].info.run_id
                client.update_run(known, status="RUNNING")
                for key in latest[0].data.metrics:
                    logged[key] = max(point.step for point in client.get_metric_history(known, key))
                return known
            if latest and latest[0].info.status == "RUNNING":  # it was killed before its first checkpoint
                client.set_terminated(latest[0].info.run_id, "KILLED")
            shown = "/".join(filter(None, (str(output), work, stage)))
            return client.create_run(experiment, run_name=shown, tags={"promptprior.stage": identity}).info.run_id

        def end() -> None:
            # What is left; a stage that ends before its last step does so where dev was asked (patience).
            client.log_batch(run, metrics=points)
            points.clear()
            client.set_terminated(run, "FINISHED" if at_dev else "KILLED")

        def end_at_exit() -> None:
            with suppress(Exception):
                end()

        def watch(step: int, steps: int, info: Info) -> None:
            nonlocal last_send, run, at_dev
            try:
                if not run:
                    run = begin(step)
                    atexit.register(end_at_exit)
                at_dev = "dev_nll" in info or step == steps
                now = int(time.time() * 1000)
                new = (pair for pair in numbers_by_line(info) if step > logged.get(pair[0], 0))
                points.extend(Metric(line, number, now, step) for line, number in new)
                while len(points) > MLFLOW_POINTS:
                    client.log_batch(run, metrics=points[:MLFLOW_POINTS])
                    del points[:MLFLOW_POINTS]
                if step == steps:
                    atexit.unregister(end_at_exit)
                    end()
                elif at_dev or time.monotonic() - last_send >= MLFLOW_SECONDS:
                    client.log_batch(run, metrics=points)
                    points.clear()
                    last_send = time.monotonic()
            except Exception as error:
                raise DiskError(
                    f"{what}: cannot log step {step} of {stage}: {_first_line(error)}; run the same command again, or "
                    "leave --mlflow out: finished work is kept"
                ) from error

        return watch

    return watch_stage


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def combine_watchers(watchers: Sequence[WatchStage]) -> WatchStage:
    """Several watchers as one; those that do not watch a stage are left out of it."""

    def watch_stage(name: str) -> Watch:
        watches = [watch for watcher in watchers if (watch := watcher(name)) is not None]

        def watch_all(step: int, steps: int, info: Info) -> None:
            for watch in watches:
                watch(step, steps, info)

        return watch_all

    return watch_stage
