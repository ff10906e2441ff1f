"""What a simulation put into an image: its true substructure, from the truth tables of the archive that the image lies in."""

import io
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PurePath

import numpy as np
from torch import Tensor

from d4lens.data.archive import MAX_TABLE_BYTES, PRESET_FILE, TABLES, SafeZip
from d4lens.data.images import ImageSource
from d4lens.data.truth import Truth
from d4lens.errors import D4LensError
from d4lens.observation import Observation
from d4lens.simulator import substructure_convergence


def true_substructure(source: ImageSource, grid: Observation) -> tuple[str, Tensor] | None:
    """Look up the true substructure of a simulated image.

    Parameters
    ----------
    source : ImageSource
        An image in an archive of `d4lens simulate`, or in a folder unpacked from one.
    grid : Observation
        The pixels to draw it on.

    Returns
    -------
    tuple, optional
        The class and the convergence (N, N), smoothed by two pixels as in training. None for any other image, and where
        the simulation had another field of view than `grid`.

    Raises
    ------
    D4LensError
        For truth tables that cannot be read.
    """
    file, member = source.place
    inside = PurePath(member or file)  # .../train/vort/7.npy
    if len(inside.parts) < 3:
        return None
    path, root = "/".join(inside.parts[-3:]), inside.parents[2]
    found = _tables(file if member else "", root)
    if found is None:
        return None
    truth, half_width = found
    rows = np.flatnonzero(truth.images["path"] == path)
    if len(rows) != 1 or abs(half_width - grid.half_width) > 1e-6 * half_width:
        return None
    its = truth.rows(rows)
    return str(its.images["class"][0]), substructure_convergence(its, grid)[0]


@lru_cache(maxsize=1)  # the images of one archive follow each other
def _tables(archive: str, root: PurePath) -> tuple[Truth, float] | None:
    """Truth and half the field's width in arcsec, from `root` in a zip, or on disk where `archive` is empty."""
    names = [*TABLES, PRESET_FILE]
    read: Callable[[str], bytes]
    if archive:
        zipped = SafeZip(archive)
        held, read = zipped.members, lambda name: zipped.read((root / name).as_posix(), MAX_TABLE_BYTES)
        missing = any((root / name).as_posix() not in held for name in names)
    else:
        read = lambda name: Path(root, name).read_bytes()  # noqa: E731 - one of two
        missing = any(not Path(root, name).is_file() for name in names)
    if missing:
        return None
    try:
        truth = Truth.from_csv(*(io.BytesIO(read(name)) for name in TABLES))
        return truth, Observation.from_dict(json.loads(read(PRESET_FILE))["observation"]).half_width
    except (OSError, ValueError, KeyError, TypeError) as error:
        where = f"{archive}: {root}" if archive else root
        raise D4LensError(f"the truth tables in {where} cannot be read ({error}); mend or remove them") from None
