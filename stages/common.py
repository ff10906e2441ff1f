"""What every stage script does before its work: arguments, parameters, and errors as one sentence."""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from d4lens import studies
from d4lens.errors import D4LensError
from d4lens.params import check

PROFILES = Path("profiles")
GROUPS = (
    "download",
    "preprocess",
    "macrofit",
    "train",
    "evaluate",
    "report",
)
OF_PROFILE = ("root", "overlay", "models", "seeds", "studied", "studies", "profile")
Group = TypeVar("Group", bound=BaseModel)


def arguments(
    description: str | None,
    *,
    arm: bool = False,
    values: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> argparse.Namespace:
    """The command line of a stage: `--profile`, for one arm of the table `--model` and `--seed`, and by name and help
    `values` that it must be given and `flags`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--profile", default="quick", help="quick, or a folder of profiles/ (default: quick)")
    if arm:
        parser.add_argument("--model", required=True, help="an arm named in params.yaml")
        parser.add_argument("--seed", type=int, required=True, help="seed of weights, batches and augmentation")
    for name, text in (values or {}).items():
        parser.add_argument(f"--{name}", required=True, help=text)
    for name, text in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return parser.parse_args()


def overlay(profile: str) -> Path:
    """The file in which a profile sets its scale: params.yaml itself for `quick`."""
    return Path("params.yaml") if profile == "quick" else PROFILES / profile / "params.yaml"


def read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise D4LensError(f"no parameters file {path}; run from the project's root, with --profile one of {known()}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise D4LensError(f"{path} is not UTF-8 text; save it as such") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        raise D4LensError(f"{path} is not valid YAML{line}; mend it") from None
    if not isinstance(values, dict):
        raise D4LensError(f"{path} holds no groups of parameters; see the committed file")
    return values


def known() -> str:
    return ", ".join(["quick", *sorted(folder.name for folder in PROFILES.glob("*") if folder.is_dir())])


def parameters(group: str, model: type[Group], profile: str) -> Group:
    """One group: what params.yaml says for all profiles, and what the profile sets on top: its own `profile.<group>`, of a
    study its `studies.<group>`.
    """
    base, own = read(Path("params.yaml")), read(overlay(profile))
    scale = own.get("studies" if group in studies.NAMES else "profile")
    every = {*GROUPS, *OF_PROFILE, *studies.NAMES, "arms"}
    for values, path, allowed in (
        (base, "params.yaml", every),
        (own, str(overlay(profile)), every),
        (own.get("profile"), f"'profile' of {overlay(profile)}", {*GROUPS, "name"}),
        (own.get("studies"), f"'studies' of {overlay(profile)}", {*studies.NAMES}),
    ):
        if not isinstance(values, dict):
            raise D4LensError(f"{path} must be a group of keys, not {values!r}")
        for key in values:
            if key not in allowed:
                raise D4LensError(f"unknown group {key!r} in {path}; known there: {', '.join(sorted(allowed))}")
        if not isinstance(values.get(group) or {}, dict):
            raise D4LensError(f"{group!r} in {path} must be a group of keys, not {values[group]!r}")
    merged = {**(base.get(group) or {}), **(scale.get(group) or {})}
    return check(model, merged, f"group {group!r} of {overlay(profile)}")


def one_sentence(main: Callable[[], None]) -> Callable[[], None]:
    """Run a stage; a user's mistake ends it with its sentence and exit code 1 instead of a traceback."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except D4LensError as error:
            sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
        except KeyboardInterrupt:
            sys.exit(130)

    return run
