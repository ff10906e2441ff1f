"""What each group of the parameters file may hold: names, types and ranges, checked before any work starts.

The stages read the file and hand a group here; the package itself never reads it. A group's meaning is commented in
`params.yaml`, its effect in the function that takes it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

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


Number = Annotated[float, BeforeValidator(_scientific)]
Positive = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[Number, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SplitCounts(_Group):
    """Images of each class in each published split."""

    train: Count
    val: Count


class GDriveParams(_Group):
    """Where on the Drive the set lies, and how patiently it is fetched."""

    id: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    retries: Annotated[int, Field(ge=0, le=20)]
    timeout_seconds: Positive
    backoff_seconds: NonNegative
    images_per_class: SplitCounts


class SimulateParams(_Group):
    """Preset, seed and overridden priors of the simulation; `train_priors` override those of the train part further."""

    preset: str
    seed: Seed
    priors: dict[str, bool | Number | list[Number]]
    train_priors: dict[str, bool | Number | list[Number]] = {}


class LimitParams(_Group):
    """How large a zip may unpack."""

    max_ratio: Positive
    max_gigabytes: Positive


class DownloadParams(_Group):
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


class PreprocessParams(_Group):
    """Group `preprocess`: the instrument (arcsec, counts) and the splits."""

    pixel_scale: Positive
    psf_sigma: Positive
    sky: NonNegative
    select_fraction: Fraction
    seed: Seed
    limits: LimitParams
    bin: Literal[1, 2, 3, 4]


class MacrofitParams(_Group):
    """Group `macrofit`: preset and iterations of the smooth fit."""

    preset: str
    batch_size: Count
    coarse_iterations: Annotated[int, Field(ge=0)]
    fine_iterations: Count
    max_starts: Count


class LossWeights(_Group):
    """Weights of the losses beside the cross-entropy's 1."""

    total_variation: NonNegative
    sparsity: NonNegative
    centre: NonNegative
    poisson: NonNegative
    consistency: NonNegative
    convergence: NonNegative


class TrainParams(_Group):
    """Group `train`, as the profile and the arm change it."""

    batch_size: Count
    learning_rate: Positive
    weight_decay: NonNegative
    warmup_fraction: Annotated[Number, Field(ge=0, lt=1)]
    gradient_clip: NonNegative
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)]
    augment: bool
    precision: Literal["auto", "32-true", "bf16-mixed"]
    losses: LossWeights
    epochs: Count
    limit: Count | None


class ArmParams(_Group):
    """A row of the table: its network, that one's options, and what it changes in `train`."""

    base: str
    options: dict[str, Any] = {}
    train: dict[str, Any] = {}


class EvaluateParams(_Group):
    """Group `evaluate`: batch, bootstrap resamples and their seed."""

    batch_size: Count
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


class PatchingParams(_Group):
    """Group `patching`."""

    models: Annotated[list[str], Field(min_length=1)]
    pairs: Annotated[int, Field(ge=2)]
    controls: Annotated[int, Field(ge=2)]
    min_difference: Positive
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


class ProbingParams(_Group):
    """Group `probing`."""

    models: Annotated[list[str], Field(min_length=1)]
    twin: str
    images: Annotated[int, Field(ge=30)]
    dimension: Count
    splits: Annotated[int, Field(ge=2)]
    seed: Seed


class SymmetryParams(_Group):
    """Group `symmetry`."""

    images: Annotated[int, Field(ge=6)]
    layer_images: Count
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


class AttributionParams(_Group):
    """Group `attribution`."""

    models: Annotated[list[str], Field(min_length=1)]
    images: Annotated[int, Field(ge=2)]
    steps: Count
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


class PlacesParams(_Group):
    """The grid of places (arcsec) of one subhalo of `mass` (Msun), and its noises."""

    side: Count
    half_width: Positive
    mass: Positive
    repeats: Count


class SensitivityParams(_Group):
    """Group `sensitivity`: masses in Msun, radii in Einstein radii."""

    arms: list[str]
    recover: str
    false_positive_rate: Fraction
    mass_edges: list[Positive]
    radius_edges: list[NonNegative]
    per_cell: Count
    places: PlacesParams
    recover_images: Count
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


class MismatchParams(_Group):
    """Group `mismatch`."""

    arms: list[str]
    answers_for: str
    images: Annotated[int, Field(ge=3)]
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


class ReportParams(_Group):
    """Group `report`: the page, its studies and galleries."""

    caption: str
    page: Annotated[str, Field(pattern=r"\.html$")]
    studies: list[str]
    examples: Count


Group = TypeVar("Group", bound=BaseModel)


def check(model: type[Group], values: Mapping[str, Any], where: str) -> Group:
    """Check one group and return it as a frozen object.

    Raises D4LensError naming the first key that is unknown, missing, of the wrong type or out of range, and `where`
    it stands.
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
