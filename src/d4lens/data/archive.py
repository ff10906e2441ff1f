"""The published archive, read where it lies: nothing is unpacked and nothing in it is trusted.

The published tree is `dataset/{train,val}/{no,sphere,vort}/N.npy`; where the images were simulated, `dataset/truth.csv`,
`dataset/subhalos.csv` and `dataset/preset.json` stand beside them. The Drive's zip also carries a `__MACOSX` tree of resource forks: skipped.
"""

import re
import shutil
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.files import atomic_path
from d4lens.progress import with_progress

TOP = "dataset"
ARCHIVE_SPLITS = ("train", "val")
TABLES = ("truth.csv", "subhalos.csv")
PRESET_FILE = "preset.json"
DARKEST = "darkest"
"""Column of truth.csv where images have skies of their own: the counts of the darkest pixel, which scaling to [0, 1] loses."""
MAX_IMAGE_BYTES = 1 << 26
MAX_TABLE_BYTES = 1 << 30
_JUNK = {".DS_Store", "Thumbs.db", "desktop.ini"}
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""The zip format's first second, of every member: equal content gives equal bytes."""


@dataclass(frozen=True)
class Limits:
    """What a zip may unpack to: unpacked over packed bytes, and unpacked gigabytes in all."""

    max_ratio: float = 200.0
    max_gigabytes: float = 20.0


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Entry:
    """One image of the tree: its split and class folder, its path below `dataset/`, and its full name in the archive."""

    split: str
    name: str
    path: str
    member: str


class SafeZip:
    """A zip from anywhere, opened for reading only after its whole directory has been found harmless.

    Parameters
    ----------
    path : str or Path
        The file.
    limits : Limits
        How large it may unpack.

    Attributes
    ----------
    members : dict
        The directory entries of regular files by name, resource forks and other litter left out.

    Raises
    ------
    D4LensError
        If the file is missing, is no zip or is cut short; if an entry is encrypted, a link or a device, is named twice (or
        twice but for case), leads outside the archive or uses a rare compression; or if the whole would unpack beyond `limits`.
    """

    def __init__(self, path: str | Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise D4LensError(f"no archive at {self.path}; check the path")
        try:
            self._zip = zipfile.ZipFile(self.path)
        except Exception as error:  # zipfile lets through whatever a malformed directory raises
            raise D4LensError(
                f"{self.path} is not a readable zip archive, or is cut short ({_reason(error)}); fetch or pack it again"
            ) from None
        try:
            self.members = self._inspect(limits)
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> "SafeZip":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading from it afterwards fails."""
        self._zip.close()

    def _inspect(self, limits: Limits) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        seen: dict[str, str] = {}
        packed = unpacked = 0
        for info in self._zip.infolist():
            name = info.filename
            self._check_entry(info)
            folded = unicodedata.normalize("NFC", name).casefold().rstrip("/")
            if folded in seen:
                how = "twice" if seen[folded] == name else f"and {seen[folded]!r}, which differ only in case"
                raise D4LensError(f"{self.path} holds {name!r} {how}; pack it again")
            seen[folded] = name
            packed += info.compress_size
            unpacked += info.file_size
            if not info.is_dir() and not is_junk(name):
                members[name] = info
        # A bomb that reuses one packed stream for many entries claims more packed bytes than the file has.
        if packed > self.path.stat().st_size:
            raise D4LensError(f"{self.path} holds entries that overlap, as zip bombs do; it is refused")
        large = max((info for info in members.values() if info.file_size > 1 << 20), key=_ratio, default=None)
        if large is not None and _ratio(large) > limits.max_ratio:
            raise D4LensError(
                f"{self.path}: {large.filename!r} would unpack to {_ratio(large):.0f} times its packed size, above "
                f"limits.max_ratio = {limits.max_ratio:g}; a zip bomb is refused"
            )
        if unpacked > max(packed, 1) * limits.max_ratio:
            raise D4LensError(
                f"{self.path} would unpack to {unpacked / max(packed, 1):.0f} times its packed size, above "
                f"limits.max_ratio = {limits.max_ratio:g}; a zip bomb is refused"
            )
        if unpacked > limits.max_gigabytes * 1e9:
            raise D4LensError(
                f"{self.path} would unpack to {unpacked / 1e9:.1f} GB, above limits.max_gigabytes = "
                f"{limits.max_gigabytes:g}; raise the limit if you trust the file"
            )
        return members

    def _check_entry(self, info: zipfile.ZipInfo) -> None:
        name = info.filename
        if not name or info.orig_filename != name or "\\" in name or any(ord(letter) < 32 for letter in name):
            raise D4LensError(f"{self.path} holds the unusable name {info.orig_filename!r}; pack it again")
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
            raise D4LensError(f"{self.path} holds {name!r}, which leads outside the archive; it is refused")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            raise D4LensError(f"{self.path} holds the link {name!r}; pack the files themselves")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise D4LensError(f"{self.path} holds {name!r}, which is no regular file; it is refused")
        if info.flag_bits & 0x1:
            raise D4LensError(f"{self.path}: {name!r} is encrypted; pack it again without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise D4LensError(f"{self.path}: {name!r} is packed neither by deflate nor stored; pack it again")

    def read(self, member: str, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
        """Return the member's bytes, length and CRC checked.

        Parameters
        ----------
        member : str
            Its name in the zip.
        max_bytes : int
            The largest size that is unpacked.

        Returns
        -------
        bytes

        Raises
        ------
        D4LensError
            Naming the member, if it is absent, claims more than `max_bytes`, is damaged or cut short.
        """
        info = self.members.get(member)
        if info is None:
            raise D4LensError(f"{self.path} holds no {member!r}")
        if info.file_size > max_bytes:
            raise D4LensError(
                f"{self.path}: {member!r} claims {info.file_size / 1e6:.0f} MB, above the {max_bytes / 1e6:.0f} MB of "
                "one such file; it is refused"
            )
        try:
            # zipfile stops at the claimed size whatever the stream holds, and then compares the CRC.
            with self._zip.open(info) as stream:
                data = stream.read()
        except Exception as error:  # as above, and what zlib makes of damage
            raise D4LensError(
                f"{self.path}: {member!r} is damaged ({_reason(error)}); fetch or pack the archive again"
            ) from None
        if len(data) != info.file_size:
            raise D4LensError(f"{self.path}: {member!r} is cut short; fetch or pack the archive again")
        return data


class Archive(SafeZip):
    """A zip that holds the published tree.

    Parameters
    ----------
    path : str or Path
        The file.
    limits : Limits
        How large it may unpack.

    Attributes
    ----------
    entries : list of Entry
        Its images ordered by split, class and number.
    beside : dict of str to str
        The member names of truth.csv, subhalos.csv and preset.json, where they are.

    Raises
    ------
    D4LensError
        Beside SafeZip's reasons, if a split or class folder is missing, empty or unknown, or a file does not belong where it
        lies.
    """

    def __init__(self, path: str | Path, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(path, limits)
        try:
            self.entries, self.beside = sort_tree(self.members, str(self.path))
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images by split and class.

        Returns
        -------
        dict of str to dict
            For each split the numbers by class.
        """
        counts = {split: dict.fromkeys(CLASSES, 0) for split in ARCHIVE_SPLITS}
        for entry in self.entries:
            counts[entry.split][entry.name] += 1
        return counts

    def verify(self) -> None:
        """Unpack every image and table in memory, one at a time; D4LensError names the first that is damaged."""
        for entry in with_progress(self.entries, desc=f"checking {self.path.name}"):
            self.read(entry.member)
        for member in self.beside.values():
            self.read(member, MAX_TABLE_BYTES)


def zip_member(name: str) -> zipfile.ZipInfo:
    """Describe a file of an archive, the same on every platform and at any time.

    The archive's bytes then depend on nothing but names, contents, their order and zlib's version.

    Parameters
    ----------
    name : str
        Its path in the archive, with forward slashes.

    Returns
    -------
    zipfile.ZipInfo
        A deflated file that all may read.
    """
    info = zipfile.ZipInfo(name, _ZIP_DATE)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # Unix
    info.external_attr = 0o644 << 16
    return info


def is_junk(name: str) -> bool:
    """Tell whether a path is litter of a file manager: resource forks, folder settings, thumbnails.

    Parameters
    ----------
    name : str
        The path, with forward slashes.

    Returns
    -------
    bool
        Whether it is.
    """
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or any(part in _JUNK or part.startswith("._") for part in parts)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a sort key by which 2.npy comes before 10.npy.

    Parameters
    ----------
    text : str
        The name.

    Returns
    -------
    list of tuple
        The key.
    """
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def sort_tree(names: Iterable[str], where: str) -> tuple[list[Entry], dict[str, str]]:
    """Find the published tree among file names, with or without its top folder `dataset/`.

    Parameters
    ----------
    names : iterable of str
        Names in a zip, or paths below a folder.
    where : str
        What they are of, for the message of an error.

    Returns
    -------
    entries : list of Entry
        The images in order (split, class, number).
    beside : dict of str to str
        The simulation's files beside them: their own names to the names given.

    Raises
    ------
    D4LensError
        As `Archive`.
    """
    names = [name for name in names if not is_junk(name)]
    top = f"{TOP}/" if any(name.startswith(f"{TOP}/") for name in names) else ""
    entries, beside = [], {}
    for name in names:
        parts = name.removeprefix(top).split("/")
        if not name.startswith(top) or len(parts) == 1:
            if parts[-1] in (*TABLES, PRESET_FILE) and name == top + parts[-1]:
                beside[parts[-1]] = name
            elif name.endswith(".npy"):
                raise D4LensError(f"{where}: {name!r} lies outside {TOP}/<train|val>/<class>/; move it there")
            continue
        if parts[0] not in ARCHIVE_SPLITS:
            raise D4LensError(
                f"{where}: {top + parts[0]!r} is no known folder; the splits are {_listed(ARCHIVE_SPLITS)}"
            )
        if len(parts) == 2:
            raise D4LensError(f"{where}: {name!r} lies beside the class folders; move or remove it")
        if parts[1] not in CLASSES:
            folder = "/".join([top + parts[0], parts[1]])
            raise D4LensError(f"{where}: {folder!r} is an unknown class folder; the classes are {_listed(CLASSES)}")
        if len(parts) > 3 or not name.endswith(".npy"):
            raise D4LensError(f"{where}: {name!r} is not an .npy file in a class folder; move or remove it")
        entries.append(Entry(parts[0], parts[1], "/".join(parts), name))
    full = {(entry.split, entry.name) for entry in entries}
    for split in ARCHIVE_SPLITS:
        for name in CLASSES:
            if (split, name) not in full:
                raise D4LensError(f"{where} holds no image in {TOP}/{split}/{name}/; every class needs some")
    entries.sort(
        key=lambda entry: (ARCHIVE_SPLITS.index(entry.split), CLASSES.index(entry.name), natural_key(entry.path))
    )
    return entries, beside


def publish_archive(source: str | Path, destination: str | Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Make the one archive out of a zip or folder with the published tree, with or without its top folder `dataset/`.

    A zip that has the tree as published is copied byte for byte after its CRCs are checked. Anything else is packed anew in
    the tree's order.

    Parameters
    ----------
    source : str or Path
        The zip or folder.
    destination : str or Path
        The archive to write.
    limits : Limits
        How large a zip may unpack.

    Raises
    ------
    D4LensError
        As `Archive`; then nothing is written.
    """
    source = Path(source)
    if source.is_dir():
        files = _walk(source)
        entries, beside = sort_tree(files, str(source))

        def read(name: str, max_bytes: int) -> bytes:
            return _read_file(files[name], max_bytes)

        with atomic_path(destination) as temporary:
            _pack(entries, beside, read, temporary)
        return
    with Archive(source, limits) as archive, atomic_path(destination) as temporary:
        if all(entry.member.startswith(f"{TOP}/") for entry in archive.entries):
            archive.verify()
            shutil.copyfile(source, temporary)
        else:
            _pack(archive.entries, archive.beside, archive.read, temporary)


def _pack(entries: list[Entry], beside: dict[str, str], read: Callable[[str, int], bytes], path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for entry in with_progress(entries, desc="packing"):
            file.writestr(zip_member(f"{TOP}/{entry.path}"), read(entry.member, MAX_IMAGE_BYTES))
        for name, member in sorted(beside.items()):
            file.writestr(zip_member(f"{TOP}/{name}"), read(member, MAX_TABLE_BYTES))


def _walk(folder: Path) -> dict[str, Path]:
    """Return the files of a user's tree by their path below `folder`.

    Links are followed, as far down as the tree is deep.
    """
    root = folder / TOP if (folder / TOP).is_dir() else folder
    if not any((root / split).is_dir() for split in ARCHIVE_SPLITS):
        raise D4LensError(f"{folder} holds neither {TOP}/ nor {_listed(ARCHIVE_SPLITS)}; name the folder that does")
    pattern = ("*", "*/*", "*/*/*", "*/*/*/*")
    paths = sorted(path for depth in pattern for path in root.glob(depth) if not path.is_dir())
    return {
        path.relative_to(folder).as_posix(): path
        for path in paths
        if not path.relative_to(root).parts[0].startswith(".")
    }


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise D4LensError(f"{path} has {size / 1e6:.0f} MB, above the {max_bytes / 1e6:.0f} MB of one such file")
        return path.read_bytes()
    except OSError as error:
        raise D4LensError(f"{path} cannot be read ({_reason(error)}); check the file") from None


def _ratio(info: zipfile.ZipInfo) -> float:
    return info.file_size / max(info.compress_size, 1)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1]


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
