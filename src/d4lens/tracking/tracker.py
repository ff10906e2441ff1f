"""One MLflow run, written while it happens, that can neither stop nor delay what it watches."""

import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from d4lens.tracking import store, system

FINGERPRINT = "fingerprint"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
"""What MLflow shows as the description of a run or an experiment."""
DATA_HASH = "data_hash"

_EXPERIMENT = (
    "One profile: the arms measured on one data set. Each run is one training with its evaluation, below the reproduction it "
    "belongs to. Sort by `test_auc_macro`, the macro AUC on the test split as the mean of eight views; `_one_view` ends the "
    "names of a single view's metrics."
)

# Limits of one request to MLflow's store.
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_DIGEST_LENGTH = 36

_Row = tuple[str, float, int, int]
"""Name, value, milliseconds, step."""

_log = logging.getLogger(__name__)


class Tracker:
    """One MLflow run, written live. Also a context manager: an exception marks the run FAILED, Ctrl-C KILLED.

    Parameters
    ----------
    enabled : bool
        False makes every call do nothing.
    folder : str or Path
        The project, which holds mlflow.db and mlartifacts/.
    experiment, name : str
        Where the run appears and what it is called.
    fingerprint : str
        Equal fingerprints share a run.
    params : Mapping, optional
        May be nested; keys are joined by dots. What the run has already stays.
    tags : Mapping of str to str, optional
        What the run has already stays. The tag data_hash also names the run's input.
    watch : bool
        Sample the machine (`system`) with each step's metrics.
    seconds : float, optional
        What the run's work took, where that is known: it then ends so long after its start, whenever it is written.

    Attributes
    ----------
    run_id : str or None
        The run, once the store could be written.
    found : bool
        Whether the run was there before.
    """

    def __init__(
        self,
        enabled: bool,
        folder: str | Path,
        experiment: str,
        name: str,
        fingerprint: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        watch: bool = True,
        seconds: float | None = None,
    ) -> None:
        self._enabled = enabled
        self._store = Path(folder).resolve()
        self._experiment, self._name = experiment, name
        self._tags = {**{key: str(value) for key, value in (tags or {}).items()}, FINGERPRINT: fingerprint}
        self._params = flatten(params or {})
        self._client: Any = None
        self._known: set[tuple[str, int, float | None]] = set()
        self._pending: list[Callable[[], None]] = []
        self._patience = store.PATIENCE_SECONDS
        self._warned = False
        self._milliseconds = None if seconds is None else round(1000 * seconds)
        self._started = 0
        self._watch = watch and enabled and system.watching()
        self.run_id: str | None = None
        self.found = False
        if self._watch:
            system.sample()
        self._flush()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write metrics of one step now. What the run has already, from an earlier go, is not repeated.

        Parameters
        ----------
        metrics : mapping of str to float
            Values by name.
        step : int
            The epoch.
        """
        now = time.time_ns() // 1_000_000
        rows = [(name, float(value), now, step) for name, value in metrics.items()]
        seen = system.sample() if self._watch else {}
        beside = [(name, value, now, step) for name, value in seen.items()]
        self._do(lambda: self._write_metrics(rows, beside))

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Copy a file, or all of a folder, into the run's artefacts.

        Parameters
        ----------
        path : str or Path
            The file or folder.
        folder : str
            Where in the artefacts.
        """
        path = Path(path)

        def copy() -> None:
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), folder or None)
            else:
                self._client.log_artifact(self.run_id, str(path), folder or None)

        self._do(copy)

    def log_text(self, text: str, name: str) -> None:
        """Write a text into the run's artefacts.

        Parameters
        ----------
        text : str
            The text.
        name : str
            The file's name.
        """
        self._do(lambda: self._client.log_text(self.run_id, text, name))

    def adopt(self, parent: str | None) -> None:
        """Show the run below another one, taking it from where it was.

        Parameters
        ----------
        parent : str, optional
            The other run's id; None leaves the run where it is.
        """
        if parent is not None:
            self._do(lambda: self._client.set_tag(self.run_id, PARENT, parent))

    def close(self, status: str = "FINISHED") -> None:
        """Mark the run's end. It warns if something could not be written by now.

        Parameters
        ----------
        status : str
            FINISHED, FAILED or KILLED.
        """
        self._patience = store.PATIENCE_SECONDS
        self._do(self._end(status))
        if self._pending:
            _log.warning("MLflow run '%s' stays incomplete; the metrics files are not affected", self._name)
            self._pending.clear()

    def _end(self, status: str) -> Callable[[], None]:
        """Make the work of ending the run: now, or as long after its start as it took."""
        now, took = time.time_ns() // 1_000_000, self._milliseconds

        def end() -> None:
            at = now if took is None else self._started + took
            self._client.set_terminated(self.run_id, status, end_time=at)

        return end

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.close("FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED")

    def _do(self, work: Callable[[], None]) -> None:
        if self._enabled:
            self._pending.append(work)
            self._flush()

    def _flush(self) -> None:
        """Do all that is pending, in order; on the first failure keep the rest for the next call."""
        if not self._enabled:
            return
        try:
            if self.run_id is None:
                self._open()
            while self._pending:
                store.check_store(self._store, self._patience)
                self._try(self._pending[0])
                self._pending.pop(0)
            self._patience, self._warned = store.PATIENCE_SECONDS, False
        except ImportError:
            self._enabled = False
            _log.warning("MLflow is not installed, so this run is not tracked; everything else goes on")
        except Exception as error:  # whatever a tracking store does wrong, the training goes on
            self._patience = store.BRIEFLY_SECONDS
            if not self._warned:
                _log.warning(
                    "MLflow store %s cannot be written (%s); everything else goes on",
                    self._store / store.DATABASE,
                    store.one_line(error),
                )
            self._warned = True

    def _try(self, work: Callable[[], None]) -> None:
        """Do one piece of work; if it is the work that is wrong and not the store, warn and count it as done."""
        try:
            work()
        except Exception as error:
            if getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE":  # locked after the probe, disk full
                raise
            _log.warning(
                "MLflow run '%s' lacks something (%s); everything else goes on", self._name, store.one_line(error)
            )

    def _open(self) -> None:
        """Find the run or create it, under a lock, so that neither database nor experiment nor run gets a twin."""
        from filelock import FileLock

        store.mlflow_client()  # the import is slow: no other process should wait for it
        with FileLock(self._store / f"{store.DATABASE}.lock", timeout=store.CREATION_SECONDS):
            store.check_store(self._store, self._patience)
            client = store.client(self._store)
            experiment = client.get_experiment_by_name(self._experiment)
            if experiment is None:
                location = (self._store / store.ARTIFACTS / self._experiment).as_uri()
                experiment_id = client.create_experiment(self._experiment, location, {NOTE: _EXPERIMENT})
            else:
                experiment_id = experiment.experiment_id
            wanted = f"tags.{FINGERPRINT} = '{self._tags[FINGERPRINT]}'"
            found = client.search_runs([experiment_id], wanted, order_by=["attributes.start_time ASC"], max_results=1)
            start = time.time_ns() // 1_000_000 - (self._milliseconds or 0)
            run = found[0] if found else client.create_run(experiment_id, start, self._tags, self._name)
        run_id = run.info.run_id
        if found:
            client.update_run(run_id, status="RUNNING")
            for name in run.data.metrics:
                self._known |= {(name, row.step, _stored(row.value)) for row in client.get_metric_history(run_id, name)}
        self._client, self._started = client, run.info.start_time
        self._describe(run)
        self.run_id, self.found = run_id, bool(found)

    def _describe(self, run: Any) -> None:
        """Write the parameters and tags that the run lacks; those it was created with tell how it was trained."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        params = [Param(key, value) for key, value in self._params.items() if key not in run.data.params]
        for start in range(0, len(params), _PARAMS_PER_BATCH):
            part = params[start : start + _PARAMS_PER_BATCH]
            # A name that MLflow refuses costs its batch, not the run.
            self._try(partial(self._client.log_batch, run.info.run_id, params=part))
        tags = [RunTag(key, value) for key, value in self._tags.items() if key not in run.data.tags]
        self._try(partial(self._client.log_batch, run.info.run_id, tags=tags))
        if DATA_HASH in self._tags and not run.inputs.dataset_inputs:
            name = self._tags.get("profile", "data")
            source = json.dumps({"uri": f"data/{name}/arrays"})
            data = Dataset(name, self._tags[DATA_HASH][:_DIGEST_LENGTH], "local", source)
            context = InputTag("mlflow.data.context", "training, selection and test")
            self._client.log_inputs(run.info.run_id, [DatasetInput(data, [context])])

    def _write_metrics(self, rows: list[_Row], beside: list[_Row]) -> None:
        """Write the rows that are new; `beside` only if any is."""
        from mlflow.entities import Metric

        new = [row for row in rows if (row[0], row[3], _stored(row[1])) not in self._known]
        new += beside if new else []
        for start in range(0, len(new), _METRICS_PER_BATCH):
            part = new[start : start + _METRICS_PER_BATCH]
            self._client.log_batch(self.run_id, metrics=[Metric(*row) for row in part])
            self._known |= {(name, step, _stored(value)) for name, value, _, step in part}


def _stored(value: float) -> float | None:
    """Return a metric as the store gives it back: infinity as the largest float; None for NaN, which equals nothing."""
    return None if math.isnan(value) else max(-sys.float_info.max, min(value, sys.float_info.max))


def enabled() -> bool:
    """Tell whether the stages track: unless the environment says D4LENS_TRACKING=off. No result depends on it.

    Returns
    -------
    bool
        Whether they do.
    """
    return os.environ.get("D4LENS_TRACKING", "on").lower() not in ("off", "0", "false", "no")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Write nested parameters as text: {"train": {"epochs": 8}} -> {"train.epochs": "8"}.

    Parameters
    ----------
    values : mapping
        The parameters; lists become JSON.
    prefix : str
        What stands before every name.

    Returns
    -------
    dict of str to str
        Values by dotted name.
    """
    result: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flatten(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return result


def run_tags(folder: str | Path, stage: str, profile: str, arm: str, seed: int, data_hash: str) -> dict[str, str]:
    """Collect the tags of a run.

    Parameters
    ----------
    folder : str or Path
        The project, whose git commit is noted, with "-dirty" if files differ.
    stage : str
        DVC's stage.
    profile, arm : str
        Of the run.
    seed : int
        Of the run.
    data_hash : str
        SHA-256 of the images' manifest.

    Returns
    -------
    dict of str to str
        Also a description, and DVC's experiment where the environment names one.
    """
    note = f"Arm `{arm}`, seed {seed}, on the data of profile `{profile}`: its training and its evaluation on the test split."
    tags = {
        NOTE: note,
        "profile": profile,
        "arm": arm,
        "seed": str(seed),
        "dvc_stage": stage,
        "data_hash": data_hash,
    }
    if name := os.environ.get("DVC_EXP_NAME"):
        tags["dvc_experiment"] = name
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        dirty = _git(folder, "status", "--porcelain", "--untracked-files=no")
        tags["git_commit"] = tags["mlflow.source.git.commit"] = commit + ("-dirty" if dirty else "")
    return tags


def _git(folder: str | Path, *arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
