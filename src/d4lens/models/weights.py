"""Tensors and their description in one safetensors file: whole or not at all, no pickle, equal bytes for equal content."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from d4lens.errors import D4LensError
from d4lens.files import atomic_path

# One key for the whole description: safetensors writes several in an order that changes from run to run.
_KEY = "d4lens"


def write(path: str | Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write tensors (copied, so that shared ones are no trouble) and a JSON description atomically.

    Parameters
    ----------
    path : str or Path
        The safetensors file.
    tensors : dict of str to Tensor
        On any device.
    description : dict
        What JSON takes.
    """
    text = json.dumps(description, sort_keys=True, allow_nan=False)
    whole = {name: value.detach().to("cpu").contiguous().clone() for name, value in tensors.items()}
    with atomic_path(path) as temporary:  # not its save_file, which lets nobody but the owner read the file
        temporary.write_bytes(save(whole, {_KEY: text}))


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and their description.

    Parameters
    ----------
    path : str or Path
        A file of `write`.

    Returns
    -------
    tensors : dict of str to Tensor
        On the CPU.
    description : dict
        As it was written.

    Raises
    ------
    D4LensError
        If the file is missing, damaged, or without a description.
    """
    path = Path(path)
    if not path.is_file():
        raise D4LensError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise D4LensError(
            f"{path} is truncated or no safetensors file ({error}); nothing else, pickles least, is read"
        ) from None
    try:
        description = json.loads(text or "")
        if not isinstance(description, dict):
            raise ValueError
    except ValueError:
        raise D4LensError(f"{path} was not written by d4lens: it carries no description of its tensors") from None
    return tensors, description
