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
from d4lens.params import (
    ArmParams,
    ContrastParams,
    GridParams,
    NetworkParams,
    Training,
    TrainParams,
    check_group,
    of_training,
    trainings,
    unreached,
)

PROFILES = Path("profiles")
GROUPS = tuple(sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - {"common", "study", "table"}))
"""Groups of params.yaml: a stage's is called as its script. `table` reads others' groups, `study` those of the studies."""
OF_PROFILE = ("root", "overlay", "grids", "pages", "studies", "profile")
OWN_GRID = ("arms", "seeds", "epochs")
Group = TypeVar("Group", bound=BaseModel)


def arguments(
    description: str | None,
    *,
    arm: bool = False,
    values: Mapping[str, str] | None = None,
) -> argparse.Namespace:
    """The command line of a stage: `--profile`, for one training `--arm`, `--seed` and those of a grid, and by name and
    help `values` that it must be given.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--profile", default="quick", help="quick, or a folder of profiles/ (default: quick)")
    if arm:
        parser.add_argument("--arm", required=True, help="an arm named in params.yaml")
        parser.add_argument("--seed", type=int, required=True, help="seed of weights, batches and augmentation")
        parser.add_argument("--limit", type=int, help="train on so many images; of a grid, with --epochs")
        parser.add_argument("--epochs", type=int, help="for so many epochs, where the profile says so")
    for name, text in (values or {}).items():
        parser.add_argument(f"--{name}", required=True, help=text)
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
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise D4LensError(f"{path} is not valid YAML{line}; mend it") from None
    if not isinstance(values, dict):
        raise D4LensError(f"{path} holds no groups of parameters; see the committed file")
    return values


def known() -> str:
    return ", ".join(["quick", *sorted(folder.name for folder in PROFILES.glob("*") if folder.is_dir())])


def layers(group: str, profile: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """One group as params.yaml says it for all profiles, and the profile's own: `profile.<group>`, of a study `studies.<group>`."""
    base, own = read(Path("params.yaml")), read(overlay(profile))
    scale = own.get("studies" if group in studies.STUDY_NAMES else "profile")
    every = {*GROUPS, *OF_PROFILE, *studies.STUDY_NAMES, "arms", "networks"}
    for values, path, allowed in (
        (base, "params.yaml", every),
        (own, str(overlay(profile)), every),
        (own.get("profile"), f"'profile' of {overlay(profile)}", {*GROUPS, *OWN_GRID, "name", "contrasts"}),
        (own.get("studies"), f"'studies' of {overlay(profile)}", {*studies.STUDY_NAMES}),
    ):
        if not isinstance(values, dict):
            raise D4LensError(f"{path} must be a group of keys, not {values!r}")
        for key in values:
            if key not in allowed:
                raise D4LensError(f"unknown group {key!r} in {path}; known there: {', '.join(sorted(allowed))}")
        if not isinstance(values.get(group) or {}, dict):
            raise D4LensError(f"{group!r} in {path} must be a group of keys, not {values[group]!r}")
    return base.get(group) or {}, scale.get(group) or {}


def parameters(group: str, model: type[Group], profile: str) -> Group:
    """One group: what params.yaml says for all profiles, and the profile's own on top."""
    shared, own = layers(group, profile)
    return check_group(model, merged(shared, own), f"group {group!r} of {overlay(profile)}")


def merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` on top of `shared`, group by group."""
    both = {key: merged(shared[key], value) for key, value in own.items()
            if isinstance(value, dict) and isinstance(shared.get(key), dict)}  # fmt: skip
    return {**shared, **own, **both}


def named(group: str, model: type[Group]) -> dict[str, Group]:
    """A group of params.yaml that holds groups by name: `arms` or `networks`."""
    values = read(Path("params.yaml")).get(group)
    if not isinstance(values, dict):
        raise D4LensError(f"{group!r} in params.yaml must be a group of named {group}, not {values!r}")
    return {name: check_group(model, value, f"{name!r} in {group!r} of params.yaml") for name, value in values.items()}


def arms_and_networks() -> tuple[dict[str, ArmParams], dict[str, NetworkParams]]:
    """Both by name; every arm's network is there."""
    arms, networks = named("arms", ArmParams), named("networks", NetworkParams)
    for name, arm in arms.items():
        if arm.network not in networks:
            raise D4LensError(f"no network {arm.network!r}, which arm {name!r} names; there are {', '.join(networks)}")
    return arms, networks


def grids(profile: str) -> dict[str, GridParams]:
    """What a profile measures: under "" the `arms` with the `seeds` of its group `profile`, then its `grids` by their names."""
    own, arms = read(overlay(profile)), named("arms", ArmParams)
    further = own.get("grids") or {}
    if not isinstance(further, dict):
        raise D4LensError(f"'grids' of {overlay(profile)} must be a group of named grids, not {further!r}")
    profile_s = own.get("profile") or {}
    declared = {"": {key: profile_s[key] for key in OWN_GRID if key in profile_s}} | further
    found = {}
    for name, values in declared.items():
        where = f"{f'grid {name!r}' if name else 'arms and seeds'} of {overlay(profile)}"
        found[name] = check_group(GridParams, values, where)
        for arm in (*found[name].arms, *found[name].epochs):
            if arm not in arms:
                raise D4LensError(f"no arm {arm!r}, named in {where}; the arms of params.yaml are {', '.join(arms)}")
    return found


def contrasts(profile: str) -> list[tuple[str, str]]:
    """The pairs of the profile's own arms whose comparison is fixed."""
    where = f"'profile' of {overlay(profile)}"
    values = {"contrasts": (read(overlay(profile)).get("profile") or {}).get("contrasts")}
    found = [(a, b) for a, b in check_group(ContrastParams, values, where).contrasts]
    arms = grids(profile)[""].arms
    for arm in (arm for pair in found for arm in pair):
        if arm not in arms:
            raise D4LensError(f"no arm {arm!r} among the arms of the profile, named in 'contrasts' in {where}")
    return found


def measured(profile: str) -> dict[str, Training]:
    """All trainings of a profile by name."""
    return trainings(grids(profile).values())


def training_parameters(profile: str, training: Training) -> tuple[ArmParams, list[TrainParams]]:
    """The arm of one training, and what each of its phases is made with: first the arm's `first`, where it has one."""
    arms, networks = arms_and_networks()
    if training.arm not in arms:
        raise D4LensError(f"no arm {training.arm!r} in params.yaml; its arms are {', '.join(arms)}")
    arm = arms[training.arm]
    phases = [(arm, f"group 'train' as profile {profile} and arm {training.arm!r} change it")]
    if arm.first:
        first = arm.model_copy(update={"train": merged(arm.train, arm.first)})
        phases.insert(0, (first, f"'first' of arm {training.arm!r} in params.yaml"))
    shared_and_own = layers("train", profile)
    return arm, [of_training(training, of, networks[arm.network], *shared_and_own, where) for of, where in phases]


def warn_of_own_values(profile: str) -> None:
    """Say which arms of the profile a value of the group `train` does not reach."""
    for sentence in unreached(measured(profile).values(), named("arms", ArmParams), layers("train", profile)[0]):
        print(f"warning: {sentence}", file=sys.stderr)


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
