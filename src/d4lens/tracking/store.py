"""The store that MLflow keeps: one SQLite file and one folder of artefacts in the project."""

import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"

# How long a locked store is waited for: once in full, then briefly at each call until it is free, and at the end.
PATIENCE_SECONDS = 2.0
BRIEFLY_SECONDS = 0.1
# Another process may be creating the database: two seconds, on an overloaded machine ten times that. Only a living
# process holds this lock, and none holds it for anything else.
CREATION_SECONDS = 30.0


class StoreError(Exception):
    """The store cannot be used now; the message says why."""


def uri(folder: str | Path) -> str:
    """Return the store's address. It is absolute, since MLflow takes a relative one from the folder it happens to run in.

    Parameters
    ----------
    folder : str or Path
        The project.

    Returns
    -------
    str
        For SQLAlchemy.
    """
    return f"sqlite:///{Path(folder).resolve() / DATABASE}"


def mlflow_client() -> Any:
    """Import MLflow's client class and keep it quiet.

    Returns
    -------
    type
        The class.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # their tables and tracebacks; what matters reaches our one warning
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient


def client(store: Path) -> Any:
    """Make a client of a store.

    Parameters
    ----------
    store : Path
        The folder it lies in.

    Returns
    -------
    mlflow.MlflowClient
        The client.
    """
    return mlflow_client()(tracking_uri=uri(store))


def check_store(store: Path, seconds: float) -> None:
    """Check that the database can be written now.

    MLflow itself would wait 20 s for a lock at each call, and retry for minutes to open a file that is no database.

    Parameters
    ----------
    store : Path
        The folder of the store.
    seconds : float
        How long to wait for a lock.

    Raises
    ------
    StoreError
        Where it cannot.
    """
    path = store / DATABASE
    try:
        connection = sqlite3.connect(path, timeout=seconds, isolation_level=None)
    except sqlite3.Error as error:
        raise StoreError(str(error)) from error
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise StoreError(str(error)) from error
    finally:
        connection.close()


def one_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its kind.

    Parameters
    ----------
    error : Exception
        The exception.

    Returns
    -------
    str
        One line.
    """
    return str(error).splitlines()[0] if str(error) else type(error).__name__
