"""The simulated data set as one archive, its shards, and their joining: the same bytes however they were made.

Tree: `dataset/{train,val}/{no,sphere,vort}/N.npy` (N from 1; float64 (1, n, n), min-max normalised, as published), then
`dataset/truth.csv`, `dataset/subhalos.csv`, `dataset/preset.json` and `dataset/shard.json`.
"""

import io
import json
import math
import multiprocessing
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from d4lens.data.archive import ARCHIVE_SPLITS, DARKEST, PRESET_FILE, TABLES, TOP, Limits, SafeZip, zip_member
from d4lens.data.truth import COLUMNS, OWN_COLUMNS, SUBHALO_COLUMNS
from d4lens.errors import D4LensError, PhysicsError
from d4lens.files import atomic_path
from d4lens.parallel import Ranks, together
from d4lens.progress import Meter
from d4lens.simulator.draws import check_seed, draw
from d4lens.simulator.priors import Preset
from d4lens.simulator.renderer import render

TRUTH, SUBHALOS, PRESET, SHARD = (f"{TOP}/{name}" for name in (*TABLES, PRESET_FILE, "shard.json"))
_CHUNK = 32  # images a task; no effect on any byte
_WORTH_A_WORKER = 600  # images one process makes in the seconds that another takes to start
_ABOUT = ("seed", "n_train", "n_val", "start", "stop")
_LEVEL = 1  # zlib: level 6 takes six times as long for a tenth less


_Task = tuple[tuple[Preset, ...], int, str, range]


@dataclass(frozen=True)
class _Member:
    """A compressed file of the archive, ready to be written."""

    name: str
    crc: int
    size: int
    data: bytes


@dataclass(frozen=True)
class _Chunk:
    """What a worker hands back for a run of images: members, and their rows of the two tables without a header."""

    members: list[_Member]
    truth: bytes
    subhalos: bytes


@dataclass(frozen=True)
class DataSet:
    """A simulated data set: all that the bytes of its archive depend on.

    Attributes
    ----------
    preset : Preset
        What the images are drawn from.
    seed : int
        At least 0.
    n_train, n_val : int
        Images of each split.
    train_presets : tuple of Preset
        What the images of the train part are drawn from, each class by itself in turn, with the preset's telescope and
        noise. An empty one: all are drawn from `preset`.
    """

    preset: Preset
    seed: int
    n_train: int
    n_val: int
    train_presets: tuple[Preset, ...] = ()


def write_archive(
    path: str | Path, data: DataSet, shard: int = 0, n_shards: int = 1, workers: int = 1, progress: bool = False
) -> None:
    """Write a data set or one part of it (see `join_shards`), the three classes in turn, atomically.

    Memory stays flat in the number of images. The bytes do not depend on `workers` and `progress`.

    Parameters
    ----------
    path : str or Path
        The zip file to write.
    data : DataSet
        What is written.
    shard, n_shards : int
        Which part, from 0, of how many.
    workers : int
        Processes at most; 1, or a small data set, is made in this one.
    progress : bool
        Show a progress bar.

    Raises
    ------
    PhysicsError
        If a number is out of range.
    D4LensError
        If the file cannot be written, or the train part's preset has another telescope or noise.
    """
    preset, seed = data.preset, data.seed
    n_train, n_val = data.n_train, data.n_val
    check_seed(seed)
    for name, value, low in (
        *(("n_train", n_train, 0), ("n_val", n_val, 0), ("n_shards", n_shards, 1), ("workers", workers, 1)),
        ("shard", shard, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise PhysicsError(f"{name} must be a whole number of at least {low}, not {value}")
    if shard >= n_shards:
        raise PhysicsError(f"shard must lie below n_shards = {n_shards}, not {shard}")
    total = n_train + n_val
    if total == 0:
        raise PhysicsError("n_train + n_val must be at least 1, not 0")
    start, stop = total * shard // n_shards, total * (shard + 1) // n_shards
    described = _description(preset, data.train_presets)
    of_split = {"train": data.train_presets or (preset,), "val": (preset,)}
    tasks = [(of_split[split], seed, split, rows) for split, rows in _tasks(start, stop, n_train)]
    about = {"seed": int(seed), "n_train": int(n_train), "n_val": int(n_val), "start": start, "stop": stop}
    with _archive(path) as archive, Meter(stop - start, Path(path).name) if progress else nullcontext() as meter:
        for chunk in _map(tasks, min(workers, (stop - start) // _WORTH_A_WORKER)):
            for member in chunk.members:
                archive.add(member)
            archive.truth.write(chunk.truth)
            archive.subhalos.write(chunk.subhalos)
            if meter is not None:
                meter.update(len(chunk.members))
        archive.finish(described, about)


def join_shards(paths: Iterable[str | Path], out: str | Path) -> None:
    """Join the shards of one data set into the file that one process would have written.

    Compressed members are copied as they are.

    Parameters
    ----------
    paths : iterable of str or Path
        The shards, in any order.
    out : str or Path
        The zip file to write.

    Raises
    ------
    D4LensError
        If the shards are of several data sets, or if one is missing, double or not an archive of `simulate`.
    """
    opened: list[tuple[dict[str, Any], dict[str, Any], Path]] = []
    for path in map(Path, paths):
        try:
            with SafeZip(path, Limits(max_gigabytes=math.inf)) as file:
                about = {key: int(value) for key, value in json.loads(file.read(SHARD)).items()}
                preset = json.loads(file.read(PRESET))
                if missing := set(_ABOUT) - set(about):
                    raise ValueError(f"{SHARD} has no {min(missing)}")
        except (D4LensError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise D4LensError(f"{path} is no shard of a simulated data set ({error})") from error
        opened.append((about, preset, path))
    if not opened:
        raise D4LensError("no shards to join")
    opened.sort(key=lambda shard: shard[0]["start"])
    first, preset, _ = opened[0]
    reached = 0
    for about, its_preset, path in opened:
        for key in ("seed", "n_train", "n_val"):
            if about[key] != first[key]:
                raise D4LensError(f"{path} has {key} {about[key]}, other shards {first[key]}: not of one data set")
        if its_preset != preset:
            raise D4LensError(f"{path} was made with other priors than the rest: not of one data set")
        if about["start"] != reached:
            raise D4LensError(f"{path} begins at image {about['start']}, but the shards before it end at {reached}")
        reached = about["stop"]
    total = first["n_train"] + first["n_val"]
    if reached != total:
        raise D4LensError(f"the shards end at image {reached} of {total}: at least one is missing")
    with _archive(out) as archive:
        for _, _, path in opened:
            try:
                with zipfile.ZipFile(path) as file, open(path, "rb") as raw:
                    for info in file.infolist():
                        if info.filename.endswith(".npy"):
                            archive.add(_raw_member(raw, info))
                    for name, table in ((TRUTH, archive.truth), (SUBHALOS, archive.subhalos)):
                        with file.open(name) as rows:
                            rows.readline()  # the header
                            shutil.copyfileobj(rows, table)
            except (
                zipfile.BadZipFile,
                zlib.error,
                struct.error,
                EOFError,
                LookupError,
                RuntimeError,
                ValueError,
            ) as error:
                raise D4LensError(f"{path} is damaged ({error}); simulate that shard again") from error
        archive.finish(preset, {**first, "start": 0, "stop": total})


def _description(preset: Preset, train_presets: Iterable[Preset]) -> dict[str, Any]:
    """Return what `preset.json` says: the preset and, as `train_presets`, how those of the train part differ from it."""
    described = preset.to_dict()
    names, others = [], {}
    for one in train_presets:
        train = one.to_dict()
        if {**train, "name": "", "priors": None} != {**described, "name": "", "priors": None}:
            raise D4LensError(
                "the train part of an archive may have other priors than val, but no other telescope or noise"
            )
        names.append(one.name)
        others[one.name] = {key: p for key, p in train["priors"].items() if p != described["priors"].get(key)}
    return {**described, "train_presets": names, "train_priors": others} if names else described


def _tasks(start: int, stop: int, n_train: int) -> Iterator[tuple[str, range]]:
    """Yield (split, indices) for the images start..stop of train followed by val, in pieces."""
    for split, low, high in zip(ARCHIVE_SPLITS, (0, n_train), (n_train, stop)):
        for a in range(max(start, low), min(stop, high), _CHUNK):
            yield split, range(a - low, min(a + _CHUNK, stop, high) - low)


def _make(task: _Task) -> _Chunk:
    """Draw, render, normalise and compress a run of images."""
    presets, seed, split, indices = task
    truth = draw(presets, seed, indices, split=split)
    images = render(truth, presets[0]).numpy()
    members = [_member(f"dataset/{path}", _npy(image)) for path, image in zip(truth.images["path"], images)]
    if "snr" in truth.images:
        truth.images[DARKEST] = images.min((1, 2)).astype(np.int64)
    return _Chunk(members, _csv(truth.images), _csv(truth.subhalos))


def _npy(image: NDArray[np.float64]) -> bytes:
    """Return an image as published: float64 (1, n, n), (k - min)/(max - min)."""
    low, high = image.min(), image.max()
    if not high > low:
        raise D4LensError("an image is constant and cannot be normalised: raise the source's brightness")
    buffer = io.BytesIO()
    np.save(buffer, ((image - low) / (high - low))[None], allow_pickle=False)
    return buffer.getvalue()


def _csv(table: pd.DataFrame) -> bytes:
    text: str = table.to_csv(index=False, header=False, lineterminator="\n")
    return text.encode()


def _member(name: str, content: bytes) -> _Member:
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return _Member(name, zlib.crc32(content), len(content), deflate.compress(content) + deflate.flush())


def _raw_member(raw: IO[bytes], info: zipfile.ZipInfo) -> _Member:
    """Return a member's compressed bytes from the archive `raw`, its header skipped."""
    raw.seek(info.header_offset)
    header = raw.read(30)
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    raw.seek(name_length + extra_length, os.SEEK_CUR)
    return _Member(info.filename, info.CRC, info.file_size, raw.read(info.compress_size))


class _Archive:
    """A zip file that takes members compressed elsewhere, which `zipfile` alone does not.

    The tables' rows wait in files without a name, so that memory does not grow with them.
    """

    def __init__(self, file: zipfile.ZipFile, truth: IO[bytes], subhalos: IO[bytes]) -> None:
        self._file, self.truth, self.subhalos = file, truth, subhalos

    def add(self, member: _Member) -> None:
        info, file = zip_member(member.name), self._file
        info.CRC, info.file_size, info.compress_size = member.crc, member.size, len(member.data)
        assert file.fp is not None
        info.header_offset = file.fp.tell()
        file.fp.write(info.FileHeader())
        file.fp.write(member.data)
        file.filelist.append(info)
        file.NameToInfo[info.filename] = info
        file.start_dir = file.fp.tell()
        file._didModify = True  # type: ignore[attr-defined]  # so that close() writes the directory

    def finish(self, preset: dict[str, Any], about: dict[str, Any]) -> None:
        """Write the tables and descriptions after the images."""
        own = (*OWN_COLUMNS, DARKEST) if "snr" in preset["priors"] else ()
        for name, columns, rows in ((TRUTH, (*COLUMNS, *own), self.truth), (SUBHALOS, SUBHALO_COLUMNS, self.subhalos)):
            rows.seek(0)
            with self._file.open(zip_member(name), "w", force_zip64=True) as member:
                member.write((",".join(columns) + "\n").encode())
                shutil.copyfileobj(rows, member)
        for name, value in ((PRESET, preset), (SHARD, about)):
            text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
            self.add(_member(name, text.encode()))


@contextmanager
def _archive(path: str | Path) -> Iterator[_Archive]:
    try:
        with (
            tempfile.TemporaryFile() as truth,
            tempfile.TemporaryFile() as subhalos,
            atomic_path(path) as temporary,
            zipfile.ZipFile(temporary, "w", compresslevel=_LEVEL) as file,
        ):
            yield _Archive(file, truth, subhalos)
    except OSError as error:
        raise D4LensError(f"cannot write {path}: {error.strerror or error}") from error


def _map(tasks: list[_Task], workers: int) -> Iterator[_Chunk]:
    """Run `_make` over the tasks, in order, in this process or in `workers` others, few chunks ahead of the writer."""
    if workers <= 1:
        yield from map(_make, tasks)
        return
    # Fresh interpreters: a fork would copy the locks of whatever threads this process runs.
    context = multiprocessing.get_context("spawn")
    with _one_thread(), ProcessPoolExecutor(workers, mp_context=context) as pool:
        ahead: deque[Future[_Chunk]] = deque()
        try:
            for task in tasks:
                ahead.append(pool.submit(_make, task))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Give each worker process that starts within one thread: the processes are the parallelism."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@together()
def write_shared(ranks: Ranks, path: str | Path, data: DataSet, workers: int = 1) -> None:
    """Write a data set by all processes of torchrun at once, with a progress bar.

    Parameters
    ----------
    ranks : Ranks
        The processes.
    path : str or Path
        The zip file to write.
    data : DataSet
        What is written.
    workers : int
        Worker processes of each rank.

    Raises
    ------
    PhysicsError, D4LensError
        As `write_archive`.
    """
    path = Path(path)
    if ranks.world == 1:
        write_archive(path, data, workers=workers, progress=True)
        return
    write_archive(ranks.part(path), data, ranks.rank, ranks.world, workers, progress=ranks.is_main)
    ranks.wait()
    if ranks.is_main:
        join_shards(ranks.parts(path), path)
        for part in ranks.parts(path):
            part.unlink()
    ranks.wait()
