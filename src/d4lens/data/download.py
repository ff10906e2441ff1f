"""The archive from where it is: the Drive, or a zip or folder of the user's. Nothing is published until whole and checked.

Files from the Drive are kept in a cache folder; an interrupted transfer goes on where it stopped, and whatever it pieced
together is held against the pinned SHA-256 or, where none is pinned, against the tree, the counts per class and the CRCs.
"""

import re
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from d4lens.data.archive import DEFAULT_LIMITS, Archive, Limits, publish_archive
from d4lens.errors import D4LensError, reason_of
from d4lens.files import atomic_path, sha256
from d4lens.progress import Meter

DRIVE = "https://drive.google.com/uc?id={id}"
PAGE = "https://drive.google.com/file/d/{id}/view"
MAX_BACKOFF_SECONDS = 120.0
_CONNECT_SECONDS = 30.0
_WEB_PAGE = "is a web page, not an archive"
_QUOTA = re.compile("too many users|quota", re.IGNORECASE)


@dataclass(frozen=True)
class Expected:
    """What a fetched archive must prove to be.

    `sha256` of the whole file, or where that is None, `images_per_class` (by split) and every CRC; within `limits` always.
    """

    sha256: str | None
    images_per_class: Mapping[str, int]
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True)
class Patience:
    """How long to try.

    There are `retries` after the first attempt, `timeout` seconds without a byte end one, and a wait of `backoff` seconds
    comes before the first retry, doubled each time.

    `attempt`: seconds that one attempt may last, for a server that drips; six of two hours bring 1.1 GB at 26 kB/s, and
    what came so far is gone on from in the next.
    """

    retries: int
    timeout: float
    backoff: float
    attempt: float = 7200.0


class _Fatal(Exception):
    """A failure that trying again does not mend."""


class _Again(Exception):
    """A failure that trying again may mend."""


def from_path(path: str | Path | None, destination: str | Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Publish a user's zip or folder as the one archive; see `archive.publish_archive`.

    Parameters
    ----------
    path : str or Path, optional
        The zip or folder; None where the parameters name none.
    destination : str or Path
        The archive.
    limits : Limits
        How large a zip may unpack.

    Raises
    ------
    D4LensError
        If there is no such path, it is no published tree, or the archive cannot be written.
    """
    if path is None:
        raise D4LensError("download.source is path but download.path is null; name the zip or folder there")
    if not Path(path).exists():
        raise D4LensError(f"download.path names {path}, which does not exist; check the path")
    try:
        publish_archive(path, destination, limits)
    except OSError as error:
        raise D4LensError(f"{destination} cannot be written: {reason_of(error)}") from None


def from_drive(
    drive_id: str,
    destination: str | Path,
    cache: str | Path,
    expected: Expected,
    patience: Patience,
    url: str = DRIVE,
) -> str:
    """Publish a Drive file as the one archive, from the cache where that holds it.

    Parameters
    ----------
    drive_id : str
        The file's id on the Drive.
    destination : str or Path
        The archive to write.
    cache : str or Path
        The folder that keeps the file between runs.
    expected : Expected
        What the file must be.
    patience : Patience
        Retries, and seconds without a byte.
    url : str
        The address, with the field {id}.

    Returns
    -------
    str
        SHA-256 of the file, in hexadecimal.

    Raises
    ------
    D4LensError
        Saying why, and what to do by hand, when the attempts are spent or another could not help. Then neither the cache nor
        `destination` holds anything new but, in a hidden folder of the cache, the bytes that a later call goes on from.
    """
    from filelock import FileLock, Timeout

    if not re.fullmatch(r"[\w-]+", drive_id):
        raise D4LensError(
            f"download.gdrive.id is {drive_id!r}, which is no Drive id; it is the part after /d/ in a link"
        )
    cached = Path(cache) / f"{drive_id}.zip"
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cached.with_suffix(".lock"), timeout=0):
            digest = _from_cache(cached, expected)
            if digest is None:
                digest = _fetch(drive_id, url, cached, expected, patience)
            with atomic_path(destination) as temporary:
                shutil.copyfile(cached, temporary)
    except Timeout:
        raise D4LensError(f"another process is downloading to {cached}; wait for it to finish") from None
    except OSError as error:
        raise D4LensError(f"{error.filename or cached} cannot be written: {reason_of(error)}") from None
    return digest


def _from_cache(cached: Path, expected: Expected) -> str | None:
    if not cached.exists():
        return None
    try:
        return _check(cached, expected)
    except D4LensError as error:
        _say(f"the cached file is not used but fetched again: {error}")
        cached.unlink()
        return None


def _check(path: Path, expected: Expected) -> str:
    """Return the file's SHA-256, once it has proved to be the archive; D4LensError otherwise."""
    with open(path, "rb") as file:
        if file.read(256).lstrip()[:1] == b"<":
            raise D4LensError(f"{path} {_WEB_PAGE}")
    digest = sha256(path)
    if expected.sha256 not in (None, digest):
        raise D4LensError(f"{path} has SHA-256 {digest}, not the {expected.sha256} of download.gdrive.sha256")
    with Archive(path, expected.limits) as archive:
        if expected.sha256 is None:
            for split, by_class in archive.counts().items():
                for name, found in by_class.items():
                    if found != expected.images_per_class[split]:
                        raise D4LensError(
                            f"{path} holds {found} images in {split}/{name}, not the {expected.images_per_class[split]} "
                            "of download.gdrive.images_per_class"
                        )
            archive.verify()
    return digest


def _fetch(drive_id: str, url: str, cached: Path, expected: Expected, patience: Patience) -> str:
    """Transfer, check and move into the cache, in bounded attempts.

    The same wrong bytes twice are the server's fault, not the line's, and end them early.
    """
    url, partial = url.format(id=drive_id), cached.with_name(f".{drive_id}.partial")
    wrong: set[str] = set()
    for attempt in range(patience.retries + 1):
        try:
            file = _transfer(url, partial, patience)
            try:
                digest = _check(file, expected)
            except D4LensError as error:
                found = sha256(file)
                shutil.rmtree(partial)
                final = _WEB_PAGE in str(error) or found in wrong
                wrong.add(found)
                raise (_Fatal if final else _Again)(str(error)) from None
            file.replace(cached)
            shutil.rmtree(partial)
            return digest
        except _Again as error:
            reason = str(error)
            if attempt == patience.retries:
                break
            wait = min(patience.backoff * 2**attempt, MAX_BACKOFF_SECONDS)
            _say(f"download: {reason}; attempt {attempt + 2} of {patience.retries + 1} in {wait:g} s")
            time.sleep(wait)
        except _Fatal as error:
            reason = str(error)
            break
    raise D4LensError(
        f"the archive could not be fetched from {url} in {attempt + 1} attempt{'s' if attempt else ''}: {reason}; download "
        f"it in a browser from {PAGE.format(id=drive_id)} and set download.source: path and download.path to the file in "
        "params.yaml, or set download.source: simulate"
    )


def _transfer(url: str, partial: Path, patience: Patience) -> Path:
    """One attempt of gdown, resuming what an earlier one left in `partial`. Raises _Again or _Fatal."""
    try:
        import gdown
        import requests
    except ImportError:
        raise D4LensError("the download needs gdown; install the extra: pip install 'd4lens[train]'") from None

    partial.mkdir(parents=True, exist_ok=True)
    target = partial / "archive.zip"
    target.unlink(missing_ok=True)  # gdown would take it for the finished file, unchecked
    if len(list(partial.glob("*.part"))) > 1:
        _clear(partial)
    too_slow = threading.Event()
    watch = threading.Timer(patience.attempt, too_slow.set)
    watch.daemon = True
    watch.start()
    try:
        with Meter(None, "download", "B") as meter:
            gdown.download(
                url,
                str(target),
                quiet=True,
                use_cookies=False,
                resume=True,
                retries=0,
                timeout=(min(_CONNECT_SECONDS, patience.timeout), patience.timeout),
                progress=meter.to,
                cancel=too_slow,
            )
    except gdown.exceptions.DownloadCancelled:
        raise _Again(f"the server is too slow, the file was not whole after {patience.attempt:g} s") from None
    except gdown.exceptions.FileURLRetrievalError as error:
        text = " ".join(str(error).split())
        raise (_Fatal if _QUOTA.search(text) else _Again)(f"Google Drive refuses the file ({text})") from None
    except requests.exceptions.HTTPError as error:
        status = error.response.status_code if error.response is not None else 500
        transient = status in (408, 429) or status >= 500
        raise (_Again if transient else _Fatal)(f"the server answers with status {status}") from None
    except gdown.exceptions.DownloadError as error:
        text = " ".join(str(error).split(".\n")[0].split())
        if "incomplete" not in text:
            _clear(partial)  # the bytes so far cannot be continued
        raise _Again(text) from None
    except requests.exceptions.RequestException as error:
        raise _Again(_plain(error)) from None
    except OSError as error:
        raise _Fatal(f"{partial} cannot be written: {reason_of(error)}") from None
    except (AssertionError, AttributeError, KeyError, ValueError) as error:  # gdown reading a page it does not know
        raise _Again(f"the server's answer makes no sense ({type(error).__name__})") from None
    finally:
        watch.cancel()
    return target


def _plain(error: Exception) -> str:
    name = type(error).__name__
    if "timeout" in name.lower() or "timed out" in str(error).lower():
        return "the server sent nothing for too long"
    return f"the connection failed ({name})"


def _clear(partial: Path) -> None:
    for path in partial.iterdir():
        path.unlink()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
