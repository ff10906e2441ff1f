"""From the archive to the arrays: every image checked, its counts recovered, duplicates found, the splits carved."""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from d4lens.classes import CLASSES
from d4lens.data.archive import DARKEST, DEFAULT_LIMITS, MAX_TABLE_BYTES, PRESET_FILE, TABLES, Archive, Entry, Limits
from d4lens.data.arrays import MANIFEST, MANIFEST_COLUMNS, OBSERVATION_FILE, SPLITS, RowWriter, atomic_folder
from d4lens.data.images import (
    COUNTS,
    DARK_SHARE,
    MIN_SIDE,
    NORMALISED,
    Counts,
    Instrument,
    Raw,
    as_image,
    parse_npy,
    prepare,
)
from d4lens.data.images.counts import MAX_COUNT, no_counts, normalised
from d4lens.errors import D4LensError, reason_of
from d4lens.files import held, sha256, sweep, write_json
from d4lens.observation import Observation
from d4lens.progress import with_progress

SKY_TOLERANCE = 0.25
_NAMED = 5


class Row(NamedTuple):
    """What is known of one image beside its pixels; `orbit` is the same for its eight rotated and flipped copies."""

    entry: Entry
    n_levels: int
    k_min: int
    sky_variance: float
    sha256: str
    orbit: bytes


def build_arrays(
    archive: str | Path,
    folder: str | Path,
    otherwise: Observation,
    factor: int = 1,
    select_fraction: float = 0.1,
    seed: int = 0,
    limits: Limits = DEFAULT_LIMITS,
    *,
    pixel_scale: float | None = None,
    psf_sigma: float | None = None,
    sky: float | None = None,
) -> dict[str, Any]:
    """Write the arrays folder (see `d4lens.data.arrays`) from an archive, whole or not at all.

    Parameters
    ----------
    archive : str or Path
        The zip of images, as `Archive` takes it.
    folder : str or Path
        The folder to write.
    otherwise : Observation
        Whose pixel scale, PSF and sky hold where they are not given and the archive does not say.
    factor : int
        Blocks of factor x factor pixels are summed.
    select_fraction : float
        Share of each class of the archive's train that is set aside as `select`; an image and its exact, rotated or flipped
        copies stay on one side.
    seed : int
        Draws that share.
    limits : Limits
        How large the zip may unpack.
    pixel_scale, psf_sigma : float, optional
        Arcsec per native pixel, and standard deviation of the PSF in arcsec.
    sky : float, optional
        Mean sky counts per native pixel; 0 where images are no photon counts over a known sky: they are normalised.

    Returns
    -------
    dict
        What observation.json says, as `arrays.load_facts`.

    Raises
    ------
    D4LensError
        Naming file and reason: whatever `Archive` refuses; an image that is not one finite, square float array of the others'
        size within [0, 1]; counts in some images but not in others; a copy of a train image in val; copies in two classes; a
        truth table that does not fit the images; a preset or empty corners that contradict the parameters.
    """
    given = {"pixel_scale": pixel_scale, "psf_sigma": psf_sigma, "sky": sky}
    with Archive(archive, limits) as source:
        tables = _read_tables(source)
        try:
            sweep(folder)
            with atomic_folder(folder) as temporary, held(temporary):
                return _build(source, temporary, tables, otherwise, given, factor, select_fraction, seed)
        except OSError as error:
            raise D4LensError(f"{folder} cannot be written: {reason_of(error)}") from None


def _build(
    source: Archive,
    folder: Path,
    tables: dict[str, bytes],
    otherwise: Observation,
    given: dict[str, float | None],
    factor: int,
    select_fraction: float,
    seed: int,
) -> dict[str, Any]:
    known = _known(tables)
    rows, observation, units = _write_images(source, folder, otherwise, given, factor, known)
    refuse_duplicates(rows, source.path)
    if units == COUNTS and not known:
        _check_sky(rows, observation, source.path)
    n_train = sum(row.entry.split == "train" for row in rows)
    selected = carve(rows[:n_train], select_fraction, seed)
    _split_rows(folder, selected)
    order = {
        "train": np.flatnonzero(~selected),
        "select": np.flatnonzero(selected),
        "test": np.arange(n_train, len(rows)),
    }
    images = _write_manifest(folder, rows, order)
    for name, data in tables.items():
        (folder / name).write_bytes(data)
    facts = {
        **observation.binned(factor).to_dict(),
        "native": observation.to_dict(),
        "bin": factor,
        "units": units,
        "archive_sha256": sha256(source.path),
        "images": images,
    }
    write_json(folder / OBSERVATION_FILE, facts)
    return facts


def orbit_digest(image: NDArray[Any]) -> bytes:
    """Hash an image so that it shares its digest with its eight rotated and flipped copies, and with no other image.

    Parameters
    ----------
    image : ndarray
        (N, N).

    Returns
    -------
    bytes
        SHA-256 of the smallest of the eight in byte order.
    """
    turned = (np.rot90(side, quarter) for side in (image, image[::-1]) for quarter in range(4))
    return hashlib.sha256(min(np.ascontiguousarray(copy).tobytes() for copy in turned)).digest()


def refuse_duplicates(rows: Iterable[Row], where: Path) -> None:
    """Refuse images that are the same up to rotation and flip in train and val, or in two classes.

    Parameters
    ----------
    rows : iterable of Row
        All images.
    where : Path
        The archive, for the message of an error.

    Raises
    ------
    D4LensError
        Naming the images.
    """
    orbits: dict[bytes, list[Entry]] = defaultdict(list)
    for row in rows:
        orbits[row.orbit].append(row.entry)
    across, contradictory = [], []
    for entries in orbits.values():
        first = entries[0]
        across += [(first, entry) for entry in entries[1:] if entry.split != first.split]
        contradictory += [(first, entry) for entry in entries[1:] if entry.name != first.name]
    for pairs, what, cure in (
        (
            across,
            "images of val that are exact, rotated or flipped copies of images of train",
            "the test would be leaked",
        ),
        (contradictory, "images that stand in two classes, up to rotation and flip", "one label of each is wrong"),
    ):
        if pairs:
            named = "; ".join(f"{copy.path} = {first.path}" for first, copy in pairs[:_NAMED])
            more = "; ..." if len(pairs) > _NAMED else ""
            raise D4LensError(f"{where} holds {len(pairs)} {what} ({named}{more}): {cure}, remove the copies")


def carve(rows: list[Row], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose the rows that go to the selection split: a share of each class, copies together.

    Whole orbits are drawn in an order that depends on their pixels and the seed alone, until the class has its share.

    Parameters
    ----------
    rows : list of Row
        Images of the archive's train part.
    fraction : float
        The share, in (0, 1).
    seed : int
        Of the order.

    Returns
    -------
    ndarray
        (n,) bool.

    Raises
    ------
    D4LensError
        If a class would be left without an image on either side.
    """
    selected = np.zeros(len(rows), bool)
    for name in CLASSES:
        orbits: dict[bytes, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            if row.entry.name == name:
                orbits[row.orbit].append(index)
        n = sum(map(len, orbits.values()))
        wanted = max(1, round(fraction * n))
        taken = 0
        for orbit in sorted(orbits, key=lambda orbit: hashlib.sha256(b"%d " % seed + orbit).digest()):
            if taken + len(orbits[orbit]) <= wanted:
                selected[orbits[orbit]] = True
                taken += len(orbits[orbit])
        if taken in (0, n):
            raise D4LensError(
                f"class {name!r} of train has {n} images, {len(orbits)} of them different: too few to set "
                f"select_fraction = {fraction:g} of them aside"
            )
    return selected


def _known(tables: dict[str, bytes]) -> dict[str, tuple[float, int]]:
    """Return sky and darkest counts of each image by its path, where a simulation's images have skies of their own."""
    own = ["image_sky", DARKEST]
    table = pd.read_csv(io.BytesIO(tables.get("truth.csv", b"path\n")), float_precision="round_trip")
    if not set(own) <= set(table):
        return {}
    return {path: (sky, darkest) for path, sky, darkest in table[["path", *own]].itertuples(index=False)}


def _write_images(
    source: Archive,
    folder: Path,
    otherwise: Observation,
    given: dict[str, float | None],
    factor: int,
    known: dict[str, tuple[float, int]],
) -> tuple[list[Row], Observation, str]:
    """Write test.npy and, still uncarved, all.npy; returns the images' rows in the archive's order."""
    counts = source.counts()
    first, _ = _read_image(source, source.entries[0])
    observation = _observed(source, replace(otherwise, n_pixels=len(first)), given)
    n, over = divmod(len(first), factor)
    if n < MIN_SIDE or (over > 1 and over % 2):
        why = (
            f"at least {MIN_SIDE} are needed" if n < MIN_SIDE else f"{over} are left over, which no two sides can share"
        )
        raise D4LensError(f"{source.path}: bin = {factor} leaves {n} of {len(first)} pixels a side; {why}")
    pixels, units, _ = _observe(source, source.entries[0], first, observation, factor, known)
    side, dtype = len(pixels), pixels.dtype
    rows = []
    with (
        RowWriter(folder / "all.npy", sum(counts["train"].values()), side, dtype) as train,
        RowWriter(folder / "test.npy", sum(counts["val"].values()), side, dtype) as test,
    ):
        for entry in with_progress(source.entries, desc="preprocess"):
            image, digest = _read_image(source, entry)
            if image.shape != first.shape:
                raise D4LensError(
                    f"{source.path}: {entry.member} has {len(image)} pixels a side where {source.entries[0].member} has "
                    f"{len(first)}; all images of an archive must have one size"
                )
            pixels, own_units, found = _observe(source, entry, image, observation, factor, known)
            if own_units != units:
                raise D4LensError(
                    f"{source.path}: {entry.member} is {own_units} where {source.entries[0].member} is {units}; "
                    "either all images of an archive are photon counts or none"
                )
            (train if entry.split == "train" else test).add(pixels)
            # Counts above the minimum tell copies apart even if the archive rounds them differently.
            key = (found.k - found.k_min).astype(np.uint16) if found.is_counts else image.astype(np.float32) + 0.0
            rows.append(Row(entry, found.n_levels, found.k_min, found.sky_variance, digest, orbit_digest(key)))
    return rows, observation, units


def _read_image(source: Archive, entry: Entry) -> tuple[NDArray[Any], str]:
    data = source.read(entry.member)
    where = f"{source.path}: {entry.member}"
    image = as_image(parse_npy(data, where), where)
    if image.dtype.kind != "f" or image.dtype.itemsize < 4:
        raise D4LensError(f"{where} holds {image.dtype}; the archive's images are float64 or float32")
    low, high = image.min(), image.max()
    if low < 0 or high > 1:
        raise D4LensError(f"{where} has values from {low:g} to {high:g}; the archive's images lie within [0, 1]")
    return image, hashlib.sha256(data).hexdigest()


def _observe(
    source: Archive,
    entry: Entry,
    image: NDArray[Any],
    native: Observation,
    factor: int,
    known: dict[str, tuple[float, int]],
) -> tuple[NDArray[Any], str, Counts]:
    """Return an image's pixels (n, n), counts or float32 from 0 to 1, their units, and its native lattice.

    Counts are uint16, float32 where images have skies of their own and may be brighter. What has levels coarser than
    photons is no counts here: their scale is known to a few per cent only.
    """
    sky, darkest = known.get(entry.path, (native.sky, None))
    instrument = Instrument(pixel_scale=native.pixel_scale, sky=sky or None)
    try:
        ready = prepare(Raw(image), native.binned(factor), instrument, whole=True)
        if ready.units != COUNTS or ready.rough:
            return normalised(ready.pixels), NORMALISED, ready.counts or no_counts()
    except D4LensError as error:
        raise D4LensError(f"{source.path}: {entry.member}: {error}") from None
    assert ready.counts is not None
    if darkest is not None:
        pixels = ready.pixels + (darkest - ready.counts.k_min) * factor**2
        return pixels.astype(np.float32), COUNTS, ready.counts
    if ready.pixels.max() > MAX_COUNT:
        raise D4LensError(
            f"{source.path}: {entry.member}: counts up to {ready.pixels.max():.0f} exceed {MAX_COUNT}, the most that 16 bits "
            "hold; bin less"
        )
    return ready.pixels.astype(np.uint16), COUNTS, ready.counts


def _observed(source: Archive, otherwise: Observation, given: dict[str, float | None]) -> Observation:
    """Return how the images were observed: as given, as a simulated archive says, or as the preset has it.

    What is given and contradicts the archive is refused: it would bias every fit.
    """
    told: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if PRESET_FILE not in source.beside:
        return replace(otherwise, **told)
    member = source.beside[PRESET_FILE]
    try:
        made = Observation.from_dict(json.loads(source.read(member))["observation"])
    except (ValueError, KeyError, TypeError):
        raise D4LensError(f"{source.path}: {member} describes no observation; remove it or mend it") from None
    for name, value in {"n_pixels": otherwise.n_pixels, **told}.items():
        if value != getattr(made, name):
            raise D4LensError(
                f"{source.path} was simulated with {name} = {getattr(made, name):g}, not {value:g}; mend preprocess.{name}"
            )
    return made


def _check_sky(rows: list[Row], observation: Observation, where: Path) -> None:
    """For photons the variance of the sky is its mean, whatever k_min: a check of the parameter."""
    found, sky = float(np.median([row.sky_variance for row in rows])), observation.sky
    # Relative error of a variance out of m pixels: sqrt(2/m).
    noise = 4 * sky * (2 / (len(rows) * DARK_SHARE * observation.n_pixels**2)) ** 0.5
    if abs(found - sky) > max(SKY_TOLERANCE * sky, 1.0) + noise:
        raise D4LensError(
            f"the empty corners of the images in {where} scatter as a sky of {found:.1f} counts per pixel does, not "
            f"sky = {sky:g}; mend preprocess.sky"
        )


def _split_rows(folder: Path, selected: NDArray[np.bool_]) -> None:
    """Part all.npy into train.npy and select.npy, image by image and not through a map, whose pages would add up."""
    whole = np.load(folder / "all.npy", mmap_mode="r")
    n, side, _ = whole.shape
    dtype, offset = whole.dtype, whole.offset
    with (
        open(folder / "all.npy", "rb") as images,
        RowWriter(folder / "train.npy", int(n - selected.sum()), side, dtype) as train,
        RowWriter(folder / "select.npy", int(selected.sum()), side, dtype) as select,
    ):
        images.seek(offset)
        for chosen in selected:
            image = np.frombuffer(images.read(side * side * dtype.itemsize), dtype).reshape(side, side)
            (select if chosen else train).add(image)
    (folder / "all.npy").unlink()


def _write_manifest(folder: Path, rows: list[Row], order: dict[str, NDArray[np.intp]]) -> dict[str, dict[str, int]]:
    """Write manifest.csv; returns the number of images by split and class."""
    table = []
    images = {split: dict.fromkeys(CLASSES, 0) for split in SPLITS}
    for split in SPLITS:
        for number, index in enumerate(order[split]):
            row = rows[index]
            label = CLASSES.index(row.entry.name)
            path, name = row.entry.path, row.entry.name
            table.append((split, number, path, label, name, row.n_levels, row.k_min, row.sha256))
            images[split][name] += 1
    pd.DataFrame(table, columns=list(MANIFEST_COLUMNS)).to_csv(folder / MANIFEST, index=False, lineterminator="\n")
    return images


def _read_tables(source: Archive) -> dict[str, bytes]:
    """Return the archive's truth tables, checked against its images.

    Every image stands once in truth.csv, and neither table names an unknown one.
    """
    paths = {entry.path for entry in source.entries}
    tables = {}
    for name, member in sorted(source.beside.items()):
        if name not in TABLES:
            continue
        where = f"{source.path}: {member}"
        data = source.read(member, MAX_TABLE_BYTES)
        try:
            listed = pd.read_csv(io.BytesIO(data), usecols=["path"])["path"].astype(str)
        except (ValueError, pd.errors.ParserError):
            raise D4LensError(f"{where} is no table with a column 'path'; remove it or mend it") from None
        unknown = set(listed) - paths
        if unknown:
            raise D4LensError(f"{where} names {min(unknown)!r}, which is not in the archive")
        if name == "truth.csv" and (len(listed) != len(paths) or set(listed) != paths):
            missing = min(paths - set(listed), default=None)
            what = f"does not list {missing!r}" if missing else "lists an image twice"
            raise D4LensError(f"{where} {what}; it must have one row an image")
        tables[name] = data
    return tables
