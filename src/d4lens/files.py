"""Files that appear whole or not at all."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from d4lens.errors import D4LensError, WriteError

_HEX = 8 * "[0-9a-f]"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file as a whole: yield an empty temporary sibling that replaces `path` on success.

    On success the sibling is flushed to disk and renamed to `path`; on failure it is removed. What killed writers of `path`
    left beside it is removed first.

    Parameters
    ----------
    path : str or Path
        The file to write; its folder is made where it is missing.

    Yields
    ------
    Path
        The sibling. It keeps the suffix, since writers such as `np.save` and pandas read it.

    Raises
    ------
    WriteError
        Where the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid4().hex[:8]}{path.suffix}")
    with writing(path, always=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        temporary.touch(exist_ok=False)
    try:
        with writing(path), ExitStack() as stack:
            with suppress(OSError):  # a file system without locks: what is left there stays
                stack.enter_context(held(temporary))
            yield temporary
        with writing(path, always=True):
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, always: bool = False) -> Iterator[None]:
    """Turn OSErrors into WriteError, which names `path`.

    Parameters
    ----------
    path : Path
        What is being written.
    always : bool
        Turn all OSErrors; by default those alone that only writing meets, such as a full disk.

    Yields
    ------
    None
        Once, for a `with`.

    Raises
    ------
    WriteError
        In place of the OSError.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, D4LensError) or not (always or error.errno in _NO_ROOM):
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)  # pyarrow's own is a sentence of its own
        raise WriteError(error.errno, reason, str(path)) from error


def readable(text: str) -> str:
    r"""Make a text that every file and stream takes.

    Parameters
    ----------
    text : str
        A file's name, perhaps with bytes that the locale did not decode (surrogate escapes).

    Returns
    -------
    str
        The text with these bytes read as UTF-8; a byte that is no UTF-8 stands as \xNN.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair, which is no byte of any name
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def sweep(path: str | Path) -> None:
    """Remove the temporary siblings of `path`, a file or a folder, that no living process holds.

    Parameters
    ----------
    path : str or Path
        The file or folder; it need not exist.
    """
    path = Path(path)
    stem, name, suffix = map(glob.escape, (path.stem, path.name, path.suffix))
    # Files are called as above, folders as in `data.arrays.atomic_folder`.
    for pattern in {f".{stem}.{_HEX}{suffix}", f".{name}.{_HEX}", f".{name}.{_HEX}.old"}:
        for left in path.parent.glob(pattern):
            with suppress(OSError), held(left):
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder; the operating system drops it with the process, however that ends.

    Parameters
    ----------
    path : Path
        The file or folder, which exists.

    Yields
    ------
    None
        Once, for a `with`.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def sole_writer(path: str | Path) -> Iterator[None]:
    """Be the only process that writes `path`.

    Parameters
    ----------
    path : str or Path
        What is written; its lock is a hidden file beside it.

    Yields
    ------
    None
        Once, for a `with`.

    Raises
    ------
    D4LensError
        While another process writes it.
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    with ExitStack() as stack:
        try:
            stack.enter_context(held(lock))
        except BlockingIOError:
            raise D4LensError(f"another process is writing {path}; wait for it or end it") from None
        yield


def require_space(folder: str | Path, n_bytes: int) -> None:
    """Check that a disk has room.

    A full disk kills a process that writes through a memory map, without a message.

    Parameters
    ----------
    folder : str or Path
        A folder on the disk.
    n_bytes : int
        How much more it must hold.

    Raises
    ------
    D4LensError
        Where the room is too small.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise D4LensError(
            f"the disk of {folder} has {free / 1e6:.0f} MB free where {n_bytes / 1e6:.0f} MB are needed; make room and "
            "run the same command again"
        )


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically.

    Parameters
    ----------
    path : str or Path
        The file.
    text : str
        Its whole content.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically with sorted keys, so that equal values give equal bytes.

    Parameters
    ----------
    path : str or Path
        The file.
    value : object
        What JSON can hold.

    Raises
    ------
    ValueError
        For NaN and infinity, which JSON has no words for.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    str
        64 digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object that an earlier stage wrote.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    dict

    Raises
    ------
    D4LensError
        If the file is missing or damaged.
    """
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise D4LensError(f"{path} is missing or damaged; run the stage that writes it again") from None
