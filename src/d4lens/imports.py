"""The project's own code that a file imports, directly or through other files, and one digest of it.

Every answer to "which code made this?" comes from here: the fingerprints of a training and of a fit, and the test that a
stage's `deps` in dvc.yaml cover what its script imports.
"""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from d4lens.files import sha256

SOURCE = Path(__file__).parents[1]
APART = ("errors", "params", "progress", "allocator", "tracking", "imports", "studies")
"""Modules of the package in which no number is made, and which are not followed: sentences, bounds of parameters, progress,
memory, MLflow's mirror, this one and the list of the studies."""


def closure(file: Path, source: Path = SOURCE) -> set[Path]:
    """Find the project's files that `file` imports, directly or through others; a lazy import counts too.

    `from package import name` means the module `name` where there is one, else the package's `__init__.py`.

    Parameters
    ----------
    file : Path
        A script or a module. Names are looked up beside it, too, as Python does for a script.
    source : Path
        The folder that holds the package.

    Returns
    -------
    set of Path
        The files, `file` among them; none of `APART`.
    """
    apart = {_module(source / "d4lens", [name]) for name in APART}
    found, waiting = set[Path](), [file]
    while waiting:
        path = waiting.pop()
        if path not in found and path not in apart:
            found.add(path)
            waiting += _imported(path, (source, file.parent))
    return found


def digest(*modules: str) -> str:
    """Hash all code that modules of the package import, comments included.

    Parameters
    ----------
    *modules : str
        Dotted names below the package, such as "train.loop".

    Returns
    -------
    str
        SHA-256 of the names and contents of their `closure`, in hexadecimal.
    """
    package = SOURCE / "d4lens"
    starts = [_module(package, module.split(".")) or package / module for module in modules]
    files = sorted(set[Path]().union(*(closure(start, SOURCE) for start in starts)))
    lines = (f"{file.relative_to(package).as_posix()} {sha256(file)}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _module(folder: Path, parts: list[str]) -> Path | None:
    """Return the file of the module of this dotted name; None where there is none."""
    path = folder.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imported(path: Path, folders: tuple[Path, ...]) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[list[str]] = []
        within = folders
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            within = (path.parents[node.level - 1],) if node.level else folders
            names = [base + alias.name.split(".") for alias in node.names]
        for name in names:
            tries = [name, name[:-1]] if isinstance(node, ast.ImportFrom) else [name]
            files = (_module(folder, parts) for parts in tries if parts for folder in within)
            if file := next(filter(None, files), None):
                yield file
