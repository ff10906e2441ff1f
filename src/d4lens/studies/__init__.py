"""Studies beside the results table. A study is one file of this package, found by its name, which defines `STUDY`.

The other modules, SHARED_MODULES, are what several studies use. Whoever adds a study touches its file, its test and params.yaml;
the stage, the page and the tools find it here.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING

from d4lens.errors import D4LensError

if TYPE_CHECKING:
    from d4lens.studies.study import Study

SHARED_MODULES = (
    "detectors",
    "error_bars",
    "layers",
    "networks",
    "physical_limit",
    "recovery",
    "samples",
    "study",
)
"""Modules of this package that are no study."""
STUDY_NAMES = tuple(
    sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SHARED_MODULES)
)
"""The studies: the names of their files, of their groups in params.yaml and of their outputs."""


def load_study(name: str) -> "Study":
    """Import the study of that name, and what it needs.

    Parameters
    ----------
    name : str
        One of STUDY_NAMES.

    Returns
    -------
    Study

    Raises
    ------
    D4LensError
        If no study has that name.
    """
    if name not in STUDY_NAMES:
        raise D4LensError(f"no study is called {name!r}; the studies are {', '.join(STUDY_NAMES)}")
    study: Study = importlib.import_module(f"{__name__}.{name}").STUDY
    return study
