"""Checkpoints of a training: one safetensors file an epoch, whole or absent, tied to what made them by a fingerprint.

The folder belongs to one training. It holds the last two epochs: a file that cannot be read is passed over for the
one before, and one of another fingerprint (parameters, data, code, or processes, device and precision) sends the training
back to its start, saying why. Of a finished training it holds the result, for a caller that could not take it.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from d4lens import imports, models
from d4lens.errors import D4LensError
from d4lens.files import sha256, sole_writer
from d4lens.models import weights

_log = logging.getLogger(__name__)
_KEPT = 2
_BEST = "best."
_LIBRARIES = ("torch", "escnn", "timm", "lightning", "numpy")

Digests = dict[str, str]


@dataclass
class Progress:
    """State of a training at the end of an epoch.

    Attributes
    ----------
    epoch : int
        Epochs done.
    history : list of dict
        One row an epoch.
    best_epoch : int
        The epoch with the best score on the selection split.
    best_score : float
        That score.
    seconds : float
        Time spent, in all sessions.
    training_seconds : float
        The same without validation and checkpoints.
    threads : list of int
        Numbers of threads it was trained with.
    n_images : int
        Size of the training set.
    tensors : dict of Tensor
        "model.*", "optimizer.*" and "best.*"; of a finished training "best.*" alone.
    """

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -1.0
    seconds: float = 0.0
    training_seconds: float = 0.0
    threads: list[int] = field(default_factory=list)
    n_images: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors under one of the three names, without it.

        Parameters
        ----------
        name : str
            One of the three names.

        Returns
        -------
        dict of str to Tensor
            The tensors, their keys shortened by the name.
        """
        return {
            key.removeprefix(f"{name}."): value for key, value in self.tensors.items() if key.startswith(f"{name}.")
        }


def digests(parameters: Mapping[str, Any], setting: Mapping[str, Any], *data: str | Path) -> Digests:
    """Take the digests that tie a training to its input.

    Parameters
    ----------
    parameters : mapping
        What the training was asked for.
    setting : mapping
        What the machine makes of it: processes, device and precision. Threads are left out, since they change the last
        bits only.
    *data : str or Path
        Folders whose files all count.

    Returns
    -------
    dict of str
        Digests of the parameters, of the setting, of the data, and of the code that trains with its libraries.
    """
    return {
        "parameters": _digest(json.dumps(parameters, sort_keys=True, default=str)),
        "processes, device and precision": _digest(json.dumps(setting, sort_keys=True)),
        "data": _digest(*(f"{file.name} {sha256(file)}" for folder in data for file in sorted(Path(folder).iterdir()))),
        "code": code(),
    }


def code() -> str:
    """Take the digest of the code that runs in a training and of the libraries' versions.

    Returns
    -------
    str
        SHA-256 in hexadecimal.
    """
    networks = (f"models.{module}" for module in models.MODULES)  # which are imported by name, unseen by `imports`
    return _digest(
        imports.digest("train.loop", *networks), *(f"{name} {number}" for name, number in versions().items())
    )


def versions() -> dict[str, str]:
    """Look up the versions of the libraries that decide a training's result.

    Returns
    -------
    dict of str to str
        Version by name.
    """
    return {name: version(name) for name in _LIBRARIES}


def combined(parts: Digests) -> str:
    """Join all into one digest, for a run's name elsewhere.

    Parameters
    ----------
    parts : dict of str to str
        Digests by name.

    Returns
    -------
    str
        SHA-256 in hexadecimal.
    """
    return _digest(json.dumps(parts, sort_keys=True))


def _digest(*lines: str) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _files(folder: str | Path) -> list[Path]:
    """List the folder's checkpoints, newest first."""
    return sorted(Path(folder).glob("epoch-*.safetensors"), reverse=True)


def save(folder: str | Path, progress: Progress, digests: Digests) -> Path:
    """Write the epoch's checkpoint atomically, then drop all but the last two.

    Parameters
    ----------
    folder : str or Path
        The training's own.
    progress : Progress
        The state after the epoch.
    digests : dict of str to str
        What the training started from.

    Returns
    -------
    Path
        The checkpoint.
    """
    path = Path(folder) / f"epoch-{progress.epoch:05d}.safetensors"
    _write(path, progress, digests)
    for old in _files(folder)[_KEPT:]:
        old.unlink()
    return path


def finish(folder: str | Path, progress: Progress, digests: Digests) -> None:
    """Keep a finished training's history and best weights alone, in the last epoch's place.

    Its outs may still get lost: where DVC was killed while it trained, the next DVC removes them. Where there is no room
    on the disk, nothing is kept.

    Parameters
    ----------
    folder : str or Path
        The training's own, with at least one checkpoint.
    progress : Progress
        The state after the last epoch.
    digests : dict of str to str
        What the training started from.
    """
    last, *older = _files(folder)
    for path in older:
        path.unlink()
    best = {name: value for name, value in progress.tensors.items() if name.startswith(_BEST)}
    try:
        _write(last, replace(progress, tensors=best), digests)
    except D4LensError as error:
        _log.warning("the result is published but not kept in %s: %s", folder, error)
        clear(folder)


def forget(folder: str | Path) -> None:
    """Remove a finished training's result, so that the next one trains; checkpoints of an unfinished one stay.

    Parameters
    ----------
    folder : str or Path
        The training's own.

    Raises
    ------
    D4LensError
        While another process trains in the folder.
    """
    with sole_writer(folder):
        for path in _files(folder):
            try:
                tensors, _ = weights.read(path)
            except D4LensError:  # which `latest` passes over, saying so
                continue
            if all(name.startswith(_BEST) for name in tensors):
                path.unlink()


def _write(path: Path, progress: Progress, digests: Digests) -> None:
    description = {name: value for name, value in vars(progress).items() if name != "tensors"}
    weights.write(path, progress.tensors, {**description, "fingerprint": digests})


def latest(folder: str | Path, digests: Digests) -> Progress:
    """Read the newest whole checkpoint.

    Parameters
    ----------
    folder : str or Path
        The training's.
    digests : dict of str
        Its fingerprint.

    Returns
    -------
    Progress
        A fresh one where there is no checkpoint of this fingerprint. The log says why one is passed over.
    """
    for path in _files(folder):
        try:
            tensors, description = weights.read(path)
            theirs = description.pop("fingerprint")
            progress = Progress(tensors=tensors, **description)
        except (D4LensError, KeyError, TypeError) as error:
            _log.warning("passing over checkpoint %s: %s", path, error)
            path.unlink(missing_ok=True)
            continue
        changed = [name for name, digest in digests.items() if theirs.get(name) != digest]
        if changed:
            _log.warning("starting afresh: the %s changed since checkpoint %s was made", " and ".join(changed), path)
            clear(folder)
            return Progress()
        return progress
    return Progress()


def clear(folder: str | Path) -> None:
    """Remove all checkpoints, and what a killed writer left half written.

    Parameters
    ----------
    folder : str or Path
        The training's own.
    """
    for path in (*_files(folder), *Path(folder).glob(".epoch-*.safetensors")):
        path.unlink(missing_ok=True)
