"""What groups of the parameters file may hold: names, types and ranges, checked before any work starts.

Here are the groups of the images' archive and those that several scripts read. What one other stage or study alone reads,
its own file declares.

The stages read the file and hand a group here; the package itself never reads it. A group's meaning is commented in
`params.yaml`, its effect in the function that takes it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from d4lens.errors import D4LensError


def _scientific(value: Any) -> Any:
    """1e-3 is a number in YAML 1.2, which DVC reads, and a string in YAML 1.1, which PyYAML reads."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


PlainNumber = Annotated[float, BeforeValidator(_scientific)]
Positive = Annotated[PlainNumber, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[PlainNumber, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[PlainNumber, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class ParameterGroup(BaseModel):
    """A group of params.yaml: every key known, every value of its type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SplitCounts(ParameterGroup):
    """Images of each class in each published split."""

    train: Count
    val: Count


class GDriveParams(ParameterGroup):
    """Where on the Drive the set lies, and how patiently it is fetched."""

    id: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    retries: Annotated[int, Field(ge=0, le=20)]
    timeout_seconds: Positive
    backoff_seconds: NonNegative
    images_per_class: SplitCounts


class SimulateParams(ParameterGroup):
    """Preset, seed and overridden priors of the simulation; images of the train part take `train_presets` in turn."""

    preset: str
    seed: Seed
    priors: dict[str, bool | PlainNumber | list[PlainNumber]]
    train_presets: list[str] = []


class LimitParams(ParameterGroup):
    """How large a zip may unpack."""

    max_ratio: Positive
    max_gigabytes: Positive


class DownloadParams(ParameterGroup):
    """Group `download`: where the images come from."""

    source: Literal["simulate", "gdrive", "path"]
    path: str | None
    cache: str
    workers: Annotated[int, Field(ge=0)]
    gdrive: GDriveParams
    simulate: SimulateParams
    limits: LimitParams
    n_train: Count
    n_val: Count


class LossWeights(ParameterGroup):
    """Weights of the losses beside the cross-entropy's 1."""

    total_variation: NonNegative
    sparsity: NonNegative
    centre: NonNegative
    poisson: NonNegative
    consistency: NonNegative
    convergence: NonNegative
    lens_convergence: NonNegative


class TrainParams(ParameterGroup):
    """What one training is made with: group `train`, as `of_training` completes it."""

    batch_size: Count
    learning_rate: Positive
    weight_decay: NonNegative
    warmup_fraction: Annotated[PlainNumber, Field(ge=0, lt=1)]
    gradient_clip: NonNegative
    label_smoothing: Annotated[PlainNumber, Field(ge=0, lt=1)]
    augment: bool
    precision: Literal["auto", "32-true", "bf16-mixed"]
    losses: LossWeights
    epochs: Count
    presets: list[str] | None
    limit: Count | None


class NetworkParams(ParameterGroup):
    """What suits a network, where neither the group `train` nor its arm says otherwise."""

    learning_rate: Positive


class ArmParams(ParameterGroup):
    """An arm: its network, that one's options, and what it sets itself of `train`.

    `first`: what a training before it, from whose best epoch it starts, sets otherwise.
    """

    network: str
    options: dict[str, Any] = {}
    train: dict[str, Any] = {}
    first: dict[str, Any] = {}


class GridParams(ParameterGroup):
    """A grid of trainings: every one of `arms` with every seed, at each of `limits` (training images: epochs) if any.

    `epochs`: of the arms that train for others than the profile's.
    """

    arms: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    limits: dict[Count, Count] = {}
    epochs: dict[str, Count] = {}


class ContrastParams(ParameterGroup):
    """Pairs of arms, the first less the second, that are compared with a p-value: fixed before anything is measured."""

    contrasts: list[Annotated[list[str], Field(min_length=2, max_length=2)]]


class Training(NamedTuple):
    """One training of a profile.

    Attributes
    ----------
    arm : str
        Its name.
    seed : int
        Seed of weights, batches and augmentation.
    limit, epochs : int or None
        Training images and epochs that a grid sets; None as the arm and the group `train` set them.
    """

    arm: str
    seed: int
    limit: int | None = None
    epochs: int | None = None

    @property
    def row(self) -> str:  # numpydoc ignore=RT01
        """The name in tables of all its seeds: the arm's, with the images of a grid's limit."""
        return self.arm if self.limit is None else f"{self.arm}_{self.limit}"

    @property
    def name(self) -> str:  # numpydoc ignore=RT01
        """The name of its files."""
        return f"{self.row}-{self.seed}"


class EvaluateParams(ParameterGroup):
    """Group `evaluate`: batch, bootstrap resamples and their seed."""

    batch_size: Count
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


class PageParams(ParameterGroup):
    """Group `page`: its file, its galleries, and the caption of the results table, which it repeats."""

    caption: str
    file: Annotated[str, Field(pattern=r"\.html$")]
    examples: Count


OWN = ("learning_rate", "epochs")
"""Keys of `train` that are null in params.yaml: the network brings its rate, the profile its epochs. One that is set reaches
all arms that do not set their own."""


def trainings(grids: Iterable[GridParams]) -> dict[str, Training]:
    """List all trainings of a profile's grids.

    Parameters
    ----------
    grids : iterable of GridParams
        The grids, the profile's own first.

    Returns
    -------
    dict of str to Training
        By name, in the grids' order.

    Raises
    ------
    D4LensError
        For a training that two grids hold.
    """
    found: dict[str, Training] = {}
    for grid in grids:
        limits: Sequence[tuple[int | None, int | None]] = list(grid.limits.items()) or [(None, None)]
        for arm, (limit, epochs), seed in product(grid.arms, limits, grid.seeds):
            training = Training(arm, seed, limit, epochs or grid.epochs.get(arm))
            if training.name in found:
                raise D4LensError(f"two grids of the profile hold {training.name}; take it out of one")
            found[training.name] = training
    return found


def of_training(
    training: Training,
    arm: ArmParams,
    network: NetworkParams,
    shared: Mapping[str, Any],
    profile: Mapping[str, Any],
    where: str,
) -> TrainParams:
    """Complete the parameters of one training from all that set them.

    Later ones override: the network's learning rate, `shared`, `profile`, of the keys OWN once more `shared` unless null,
    the arm's `train`, the grid's limit and epochs.

    Parameters
    ----------
    training : Training
        Its limit and epochs, where a grid sets them.
    arm : ArmParams
        The arm of the training.
    network : NetworkParams
        The arm's network.
    shared : Mapping
        The group `train` of params.yaml.
    profile : Mapping
        The profile's own group `train`.
    where : str
        Where the values stand, for the message of an error.

    Returns
    -------
    TrainParams
        Checked and complete.

    Raises
    ------
    D4LensError
        As `check_group`.
    """
    layers = [
        network.model_dump(),
        shared,
        profile,
        {key: shared[key] for key in OWN if key in shared},
        arm.train,
        {key: value for key in ("limit", "epochs") if (value := getattr(training, key)) is not None},
    ]
    values: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key == "losses" and isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
                value = {**values[key], **value}
            if value is not None or key not in OWN:
                values[key] = value
    return check_group(TrainParams, values, where)


def unreached(trainings: Iterable[Training], arms: Mapping[str, ArmParams], shared: Mapping[str, Any]) -> list[str]:
    """Name the arms that a value of the group `train` does not reach.

    Parameters
    ----------
    trainings : iterable of Training
        Those of the profile.
    arms : Mapping
        The arms by name.
    shared : Mapping
        The group `train` of params.yaml.

    Returns
    -------
    list of str
        One sentence for each of OWN that `shared` sets and some arm sets itself.
    """
    said = []
    for key in OWN:
        if shared.get(key) is not None:
            own = {
                training.row: getattr(training, key, None) or arms[training.arm].train.get(key)
                for training in trainings
            }
            kept = [f"{row} ({value:g})" for row, value in own.items() if value is not None]
            if kept:
                said.append(f"train.{key} = {shared[key]:g} does not reach those that set their own: {', '.join(kept)}")
    return said


Group = TypeVar("Group", bound=BaseModel)


def check_group(model: type[Group], values: Mapping[str, Any], where: str) -> Group:
    """Check one group and return it as a frozen object.

    Parameters
    ----------
    model : type
        The class of the group.
    values : Mapping
        Its keys and values as read.
    where : str
        Where they stand, for the message of an error.

    Returns
    -------
    ParameterGroup
        Of the type `model`.

    Raises
    ------
    D4LensError
        Naming the first key that is unknown, missing, of the wrong type or out of range.
    """
    if not isinstance(values, Mapping):
        raise D4LensError(f"{where} must be a group of keys, not {values!r}")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields)
            raise D4LensError(f"unknown key {key!r} in {where}; known there: {known}") from None
        if first["type"] == "missing":
            raise D4LensError(f"missing key {key!r} in {where}; add it") from None
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise D4LensError(f"wrong value {first['input']!r} for {key!r} in {where}: {reason}") from None
