"""Images in, table out: the whole way of an image through the fit and the network, for every user of it."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from d4lens import models
from d4lens.classes import CLASSES
from d4lens.data import images
from d4lens.data.images import COUNTS, ImageSource, Instrument, Prepared
from d4lens.data.images.counts import dark_sky
from d4lens.data.images.psf import Gaussians, with_variance
from d4lens.errors import D4LensError
from d4lens.files import readable
from d4lens.flags import DECIDED, Flag, Raised, abstains, join_flags
from d4lens.macrofit import (
    TABLE_COLUMNS,
    FitResult,
    MarginalFit,
    SmoothLensModel,
    fit_faintest,
    fit_marginal,
    fit_smooth_lens,
    open_model,
    preset_model,
    significance_maps,
)
from d4lens.macrofit.centre import CENTRE, GRACE, deviance, freed, places, promise, seen_from_lens, unexplained
from d4lens.macrofit.columns import FIT_COLUMNS
from d4lens.macrofit.lens_light import LIGHT_NAMES, shines
from d4lens.macrofit.marginal import NUISANCE
from d4lens.macrofit.presets import pseudo_counts
from d4lens.macrofit.smooth_lens import PARAMETERS
from d4lens.macrofit.threads import in_threads
from d4lens.macrofit.world import AUTO, MARGINAL, MODELS, SPECIALIST, foreign
from d4lens.models.averaging import exported, predict_logits
from d4lens.models.batch import LensBatch
from d4lens.observation import Observation
from d4lens.progress import Meter
from d4lens.table_files import PROBABILITIES

PREDICT_COLUMNS = ("path", "label", *PROBABILITIES, "chi2", "flag", "processing")
FIT_TABLE_COLUMNS = (*TABLE_COLUMNS, "flag", "processing")
WEIGHTS = Path(str(files("d4lens"))) / "weights" / "d4lenspinn.safetensors"
"""The network that ships with the package."""
SURVEY_WEIGHTS = WEIGHTS.with_name("survey.safetensors")
"""The one beside it, for the maps of the marginal fit."""
DEFAULT_PRESET = "deeplense"
"""What is known of a lens by default: the simulator's preset behind the shipped weights."""

_BATCH = 64
# In ln(photons): what the sky's noise leaves open is a fiftieth, a fit with substructure a little more.
_SCALE_DOUBT = 0.1
_SIGMAS = 6.0  # below what photon noise gives chi2: images that were smoothed, or a gain that is too small
_RING = 0.9  # share of the lens's light that must be seen
# A lens is moved off its image's centre where that gains more deviance than noise would, and either leaves nothing but noise
# (in standard deviations), or gains most of what was left over, or moves it farther than substructure could make it seem.
_GAIN, _MOST, _FARTHER = 25.0, 0.65, 0.08
# A gain of a smaller share casts doubt on a label that hangs on it; the published images are centred, and need more of it.
_DOUBT, _PUBLISHED_DOUBT = 0.25, 0.5
_CENTRE_ITERATIONS = 20
_PIXELS = 3.0  # off centre beyond which it is said
_PHOTONS_ALONE = "the specialist takes photon counts of a dark lens; {} is for --model marginal or auto"
ARCS_CHI2 = "arcs_chi2"
_POOR = 1.5  # chi2 on the arcs of a marginal fit: a smooth lens of any kind leaves noise
_PSF = ("psf_sigma",)
# A free PSF explains up to 0.11 of what substructure leaves, but at least 0.7 of what a PSF wrong by an eighth leaves.
_PSF_DOUBT = 0.25


@dataclass
class Answer:
    """What became of images.

    Attributes
    ----------
    table : pandas.DataFrame
        One row an image, in the order found.
    failures : list of (path, reason)
        Those that could not be used.
    """

    table: pd.DataFrame
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Classifier:
    """A trained network ready to predict with.

    Attributes
    ----------
    network : torch.nn.Module
        Exported: without escnn.
    config : dict
        What its file says of it.
    other : Classifier, optional
        A network on the same pixels for the maps that this one was not trained on.
    """

    network: nn.Module
    config: dict[str, Any]
    other: "Classifier | None" = None

    def of(self, model: str) -> "Classifier":
        """Return the network for a smooth lens's maps: the other one where it alone was trained on them.

        Parameters
        ----------
        model : str
            SPECIALIST or MARGINAL.

        Returns
        -------
        Classifier
            It, or this one.
        """
        return self.other if self.other is not None and self.other.model == model != self.model else self

    @property
    def grid(self) -> Observation:  # numpydoc ignore=RT01
        """The pixels, PSF and sky of the images it was trained on."""
        return Observation.from_dict(self.config["observation"])

    @property
    def model(self) -> str:  # numpydoc ignore=RT01
        """Whose maps it was trained on: SPECIALIST or MARGINAL."""
        return str(self.config.get("smooth_lens", SPECIALIST))

    @property
    def decided(self) -> float:  # numpydoc ignore=RT01
        """The probability without which no label is given."""
        return float(self.config.get("decided", DECIDED))

    @property
    def largest_chi2(self) -> float | None:  # numpydoc ignore=RT01
        """Per pixel, beyond which an image is unlike its training; None where its file does not say."""
        largest = self.config.get("largest_chi2")
        return None if largest is None else float(largest)


@dataclass(frozen=True)
class Fitted:
    """Images (B) fitted with one smooth lens.

    Attributes
    ----------
    names : list of str
        Path, or place in a given stack.
    images : list of Prepared
        What was fitted, and what was done to each.
    counts : (B, N, N)
        Photons, NaN where there are no data.
    lens : SmoothLensModel
        The model.
    result : FitResult
        Its fit.
    rival : Fitted, optional
        The same images with the lens's centre fitted, or at the image's centre after all, where that is a second opinion.
    """

    names: list[str]
    images: list[Prepared]
    counts: Tensor
    lens: SmoothLensModel
    result: FitResult
    rival: "Fitted | None" = None

    @property
    def model(self) -> str:  # numpydoc ignore=RT01
        """SPECIALIST or MARGINAL."""
        return MARGINAL if isinstance(self.result, MarginalFit) else SPECIALIST

    @property
    def has_light(self) -> bool:  # numpydoc ignore=RT01
        """Whether the lens galaxy's light was fitted too."""
        return self.result.parameters.shape[1] > len(self.lens.free)

    @property
    def noise(self) -> Tensor:  # numpydoc ignore=RT01
        """(B,) variance over mean of each image's sky: 1, less where resampling has averaged neighbours."""
        return torch.tensor([image.noise for image in self.images], dtype=torch.float64)

    @property
    def names_fitted(self) -> tuple[str, ...]:  # numpydoc ignore=RT01
        """The fitted quantities in the order of `result.parameters`."""
        return (*self.lens.free, *LIGHT_NAMES)[: self.result.parameters.shape[1]]


def load_classifier(weights: str | Path | None = None) -> Classifier:
    """Load a trained network.

    Parameters
    ----------
    weights : str or Path, optional
        A model.safetensors; None takes the package's two.

    Returns
    -------
    Classifier
        Ready to predict.

    Raises
    ------
    D4LensError
        For a file that holds no network of this project.
    """
    if weights is None:
        other = load_classifier(SURVEY_WEIGHTS) if SURVEY_WEIGHTS.is_file() else None
        return replace(load_classifier(default_weights()), other=other)
    path = weights
    try:
        network, config = models.load(path)
        float(config.get("largest_chi2") or 0) + float(config.get("decided") or 0)
    except D4LensError:
        raise
    except (TypeError, ValueError, AttributeError, RecursionError) as error:  # JSON, but of other things than ours
        raise D4LensError(
            f"{path} describes no network of this project ({type(error).__name__}); name a model.safetensors that d4lens "
            "wrote"
        ) from None
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        raise D4LensError(f"{path} holds weights that are not finite numbers; take another, or train again")
    return Classifier(exported(network), config)


def classify(
    sources: Sequence[ImageSource],
    classifier: Classifier,
    *,
    tta: bool = True,
    force_label: bool = False,
    instrument: Instrument = Instrument(),  # noqa: B008 - frozen
    free: Sequence[str] = (),
    model: str = AUTO,
    progress: bool = True,
) -> Answer:
    """Classify images.

    Parameters
    ----------
    sources : sequence of ImageSource
        The images, as `data.images.find` finds them.
    classifier : Classifier
        The network.
    tta : bool
        Average over the eight symmetries of the square.
    force_label : bool
        Give a label also where a flag withholds it.
    instrument : Instrument
        What is known of the instrument.
    free : sequence of str
        Parameters of the smooth lens to fit beyond the preset's.
    model : str
        One of MODELS.
    progress : bool
        Whether to show how far it has come.

    Returns
    -------
    Answer
        Columns PREDICT_COLUMNS. `label` is empty where a flag withholds it; the probabilities stand all the same. `chi2`
        is that of the smooth lens per pixel. `flag` is empty, or the words of the `d4lens.flags.Flag`s raised, joined by
        "; ". `processing` says what was done to the image.
    """
    rows: dict[str, list[object]] = {}
    failures = []
    way = way_of(model, instrument, free, classifier)
    for fitted, broken in fitted_batches(sources, classifier.grid, instrument, way, progress):
        failures += broken
        for name, reason in broken:
            rows[name] = [name, "", *[math.nan] * len(CLASSES), math.nan, str(Raised(Flag.FAILED, reason)), ""]
        for part in fitted:
            its = classifier.of(part.model)
            probabilities = logits_of(part, its, tta).softmax(1)
            doubts = doubtful(part, probabilities, its, tta)
            for i, (name, p) in enumerate(zip(part.names, probabilities, strict=True)):
                chi2, raised = float(part.result.chi2[i]), flags_of(part, i, its)
                raised += [Raised(Flag.UNSURE_CENTRE)] if doubts[i] else []
                raised += undecided(p, its)
                label = "" if abstains(raised) and not force_label else CLASSES[int(p.argmax())]
                rows[name] = [name, label, *p.tolist(), chi2, join_flags(raised), "; ".join(part.images[i].notes)]
    table = pd.DataFrame([rows[source.name] for source in sources], columns=list(PREDICT_COLUMNS))
    return Answer(table, failures)


def fit_sources(
    sources: Sequence[ImageSource],
    *,
    instrument: Instrument = Instrument(),  # noqa: B008 - frozen
    free: Sequence[str] = (),
    model: str = AUTO,
    progress: bool = True,
) -> Answer:
    """Fit a smooth lens to every image: the default preset's, or one whose source is marginalised.

    Parameters
    ----------
    sources, instrument, free, model, progress
        As `classify` takes them.

    Returns
    -------
    Answer
        Columns FIT_TABLE_COLUMNS, lengths in arcsec; then `sigma_NAME`, the standard deviation, for each of FIT_COLUMNS; then
        NAME and `sigma_NAME` for whatever else was fitted to any image, NaN where it was not; after a marginal fit
        `arcs_chi2`, the chi2 a pixel where the source shines. An image that nothing fits has its chi2 and `converged` False.
    """
    rows: dict[str, dict[str, object]] = {}
    failures = []
    way, grid = way_of(model, instrument, free), preset_model(DEFAULT_PRESET).observation
    for fitted, broken in fitted_batches(sources, grid, instrument, way, progress, own_pixels=True):
        failures += broken
        for name, reason in broken:
            rows[name] = {"path": name, "converged": False, "flag": str(Raised(Flag.FAILED, reason)), "processing": ""}
        for part in fitted:
            found = part.result.table(part.names)
            values, sigmas = part.result.parameters.numpy(), part.result.sigma.numpy()
            for i, name in enumerate(part.names_fitted):
                found[name], found[f"sigma_{name}"] = values[:, i], sigmas[:, i]
            if isinstance(part.result, MarginalFit):
                found[ARCS_CHI2] = part.result.arcs_chi2.numpy()
            # From the image's own centre, where the grid's lies half a pixel off.
            centres = centres_of(part.images).numpy()
            for axis, of_axis in enumerate((["source_x", "lens_x", "light_x"], ["source_y", "lens_y", "light_y"])):
                for name in found.columns.intersection(of_axis):
                    found[name] -= centres[:, axis]
            found["flag"] = [join_flags(flags_of(part, i)) for i in range(len(part.names))]
            found["processing"] = ["; ".join(image.notes) for image in part.images]
            rows |= zip(part.names, found.to_dict("records"), strict=True)
    table = pd.DataFrame([rows[source.name] for source in sources])
    return Answer(table.reindex(columns=[*FIT_TABLE_COLUMNS, *_more_columns(table.columns)]), failures)


def _more_columns(found: Sequence[str]) -> list[str]:
    """Order a fit's columns beyond FIT_TABLE_COLUMNS: deviations of the seven, then values and deviations of what else is found."""
    others = [name for name in (*PARAMETERS, *LIGHT_NAMES) if name in found and name not in FIT_COLUMNS]
    values = [each for name in others for each in (name, f"sigma_{name}")]
    return [*(f"sigma_{name}" for name in FIT_COLUMNS), *values, *([ARCS_CHI2] if ARCS_CHI2 in found else [])]


@dataclass(frozen=True)
class Way:
    """Which smooth lens is fitted.

    Attributes
    ----------
    model : str
        One of MODELS.
    free : tuple of str
        Parameters to fit beyond the preset's.
    einstein_radius : float, optional
        arcsec, of lenses whose galaxy shines.
    largest_chi2 : float, optional
        Per pixel, beyond which AUTO takes an image for another world's.
    any_pixels : bool
        Whether AUTO fits the specialist to images on any pixels, not on the published ones alone.
    published_alone : bool
        Whether AUTO fits it only to images that are as the published ones are, of whose source the preset knows.
    """

    model: str = SPECIALIST
    free: tuple[str, ...] = ()
    einstein_radius: float | None = None
    largest_chi2: float | None = None
    any_pixels: bool = False
    published_alone: bool = False


def way_of(model: str, instrument: Instrument, free: Sequence[str], classifier: Classifier | None = None) -> Way:
    """Return the way that a caller asks for.

    Parameters
    ----------
    model : str
        One of MODELS; AUTO is MARGINAL for a network that was trained on such maps.
    instrument, free
        As `classify` takes them.
    classifier : Classifier, optional
        Whose maps are to be made.

    Returns
    -------
    Way
        The way.

    Raises
    ------
    D4LensError
        For another model, and for what the specialist knows nothing of: a noise map, a galaxy's light.
    """
    if model not in MODELS:
        raise D4LensError(f"there is no model {model!r} of the smooth lens; there are {_listed(MODELS)}")
    for name, value in (("a noise map", instrument.noise), ("an Einstein radius", instrument.einstein_radius)):
        if model == SPECIALIST and value is not None:
            raise D4LensError(_PHOTONS_ALONE.format(name))
    if instrument.einstein_radius is not None or (classifier and classifier.model == MARGINAL and model == AUTO):
        model = MARGINAL
    if classifier is None:
        return Way(model, tuple(free), instrument.einstein_radius)
    # A network reads maps on its own pixels; the specialist's are as good where the image was resampled to them.
    return Way(model, tuple(free), instrument.einstein_radius, classifier.largest_chi2, any_pixels=True)


def fit_images(
    names: Sequence[str],
    prepared: Sequence[Prepared],
    grid: Observation,
    way: Way = Way(),
) -> list[Fitted]:
    """Fit images on the pixels of a grid, those that share a smooth lens together.

    AUTO takes the specialist where the image has the published pixels (or `way.any_pixels`) and the noise of photons, and is
    fitted as images of the preset are: no worse than the training's, and with no more to gain from what the preset knows.

    Parameters
    ----------
    names : sequence of str
        Of the images.
    prepared : sequence of Prepared
        The images.
    grid : Observation
        The network's pixels.
    way : Way
        Which smooth lens is fitted.

    Returns
    -------
    list of Fitted
        The images, some to each smooth lens.

    Raises
    ------
    D4LensError
        For a noise map where the specialist is asked for.
    """
    if way.model == SPECIALIST and any(image.variance is not None for image in prepared):
        raise D4LensError(_PHOTONS_ALONE.format("a noise map"))
    unlike = [
        image.variance is not None
        or image.grid != grid
        or not (image.exact or way.any_pixels)
        or (way.published_alone and not image.standard)
        for image in prepared
    ]
    other = [way.model == MARGINAL or (way.model == AUTO and is_unlike) for is_unlike in unlike]
    own = [i for i, is_other in enumerate(other) if not is_other]
    parts = _specialist([names[i] for i in own], [prepared[i] for i in own], grid, way.free)
    fitted, again, prepared = [], [i for i, is_other in enumerate(other) if is_other], list(prepared)
    for part in parts:
        gone = torch.zeros(len(part.names), dtype=torch.bool)
        if way.model == AUTO and part.images[0].units == COUNTS:  # of a guessed noise the fit's quality says nothing
            gone = foreign(part.counts, part.result, part.lens, way.largest_chi2, part.noise)
        for row in torch.nonzero(gone)[:, 0].tolist():
            again.append(names.index(part.names[row]))
            doubts = [flag for flag in part.images[row].flags if flag.flag is Flag.PSF_DISAGREES]
            prepared[again[-1]] = replace(prepared[again[-1]], flags=(*prepared[again[-1]].flags, *doubts))
        rows = torch.nonzero(~gone)[:, 0].tolist()
        if rows:
            fitted.append(_rows(part, rows, with_rival=True))
    return fitted + _marginal([names[i] for i in again], [prepared[i] for i in again], way)


def _marginal(names: Sequence[str], prepared: Sequence[Prepared], way: Way) -> list[Fitted]:
    """Fit images with source and lens light marginalised, those of one lens model together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    counts = [torch.from_numpy(image.pixels) for image in prepared]
    for i, image in enumerate(prepared):
        if image.units != COUNTS:
            counts[i] = pseudo_counts(counts[i][None])[0]
        lens = choose_lens(image, image.grid)
        sky = lens.constants["sky"]
        if not (image.standard or image.sky_known):
            dark = dark_sky(counts[i].numpy())[0]
            sky = dark / lens.binning**2 if dark > 0 else sky  # a mean below 0 is no sky of photons
        variance = (
            counts[i].nan_to_num(1.0).clamp_min(1.0) if image.variance is None else torch.from_numpy(image.variance)
        )
        light = way.einstein_radius is not None or shines(
            counts[i], variance.reciprocal().where(counts[i].isfinite(), 0.0), lens
        )
        key = (lens.observation, lens.psf_shape, lens.binning, sky, light, image.variance is None)
        groups.setdefault(key, []).append(i)

    def work(group: tuple[tuple[Any, ...], list[int]]) -> Fitted:
        (observation, psf_shape, binning, sky, light, _), members = group
        lens = open_model(observation, binning, {"sky": sky}, psf=_PSF[0] in way.free, psf_shape=psf_shape)
        taken = [prepared[i] for i in members]
        stack = torch.stack([counts[i] for i in members])
        variances = [image.variance for image in taken if image.variance is not None]
        noise = torch.from_numpy(np.stack(variances)).sqrt() if variances else None
        radius = torch.full((len(taken),), way.einstein_radius or math.nan).double() if light else None
        result = fit_marginal(stack, lens, noise=noise, einstein_radius=radius, threads=1 if len(groups) > 1 else None)
        note = "fitted: marginal" + (", with the lens galaxy's light" if light else "")
        taken = [replace(image, notes=(*image.notes, note)) for image in taken]
        return Fitted([names[i] for i in members], taken, stack, lens, result)

    if len(groups) < 2:
        return [work(group) for group in groups.items()]
    return in_threads(work, groups.items(), torch.get_num_threads())


def _specialist(
    names: Sequence[str], prepared: Sequence[Prepared], grid: Observation, free: tuple[str, ...]
) -> list[Fitted]:
    """Fit the preset's lens."""
    prepared = _scaled_by_source(prepared, grid)
    groups: dict[int, tuple[SmoothLensModel, list[int]]] = {}
    for i, image in enumerate(prepared):
        lens = choose_lens(image, grid, free)
        groups.setdefault(id(lens), (lens, []))[1].append(i)
    fitted: list[Fitted] = []
    for lens, members in groups.values():
        taken = [prepared[i] for i in members]
        counts = torch.from_numpy(np.stack([image.pixels for image in taken]))
        if taken[0].units != COUNTS:
            counts = pseudo_counts(counts)
        lifts, skies = [image.lift for image in taken], [image.sky for image in taken]
        counts, result, raised = fit_faintest(counts, lens, lifts, skies)
        by = [(f"the fit raised every pixel by {by:+d} counts",) if by else () for by in raised]
        taken = [
            replace(image, notes=(*image.notes, *said, "fitted: specialist"))
            for image, said in zip(taken, by, strict=True)
        ]
        fitted += map(_psf_checked, _centred(Fitted([names[i] for i in members], taken, counts, lens, result)))
    return fitted


def _psf_checked(part: Fitted) -> Fitted:
    """Flag the images that show another PSF than the one they were fitted with."""
    if _PSF[0] in part.lens.free:
        return part
    left = _unexplained(part)
    gain, begin = promise(part.counts, part.result, part.lens, _PSF)
    tried = torch.nonzero((gain > _GAIN / 2) & (gain > _PSF_DOUBT / 2 * left))[:, 0]
    if not len(tried):
        return part
    lens = freed(part.lens, _PSF)
    free = fit_smooth_lens(part.counts[tried], lens, initial=begin[tried], fine_iterations=_CENTRE_ITERATIONS)
    fixed = _rows(part, tried.tolist())
    known = torch.full((len(tried), 1), part.lens.constants[_PSF[0]], dtype=torch.float64)
    before = deviance(fixed.counts, torch.cat([fixed.result.parameters, known], 1), lens)
    gain = before - deviance(fixed.counts, free.parameters, lens)
    images = list(part.images)
    for row in torch.nonzero((gain > _GAIN) & (gain > _PSF_DOUBT * left[tried]))[:, 0].tolist():
        i = int(tried[row])
        detail = f"the image's is {float(free.parameters[row, -1] / known[row]):.2f} times as wide"
        images[i] = replace(images[i], flags=(*images[i].flags, Raised(Flag.PSF_DISAGREES, detail)))
    return replace(part, images=images)


def _unexplained(part: Fitted) -> Tensor:
    """Return the deviance (B,) of each image beyond that of its noise."""
    return unexplained(part.counts, part.result.chi2, part.noise)


def _centred(part: Fitted) -> list[Fitted]:
    """Place the lenses where they belong: at the images' centres, or off them where the fit says so."""
    if any(name in part.lens.free for name in CENTRE):
        return [part]
    pixels = torch.isfinite(part.counts).sum((1, 2)).double()
    standard = torch.tensor([image.standard for image in part.images])
    doubt = torch.where(standard, _PUBLISHED_DOUBT, _DOUBT)
    left = _unexplained(part)
    gain, begin = promise(part.counts, part.result, part.lens)
    step = begin[:, -2:] - places(part.result, part.lens)
    tried = torch.nonzero((gain > _GAIN) & ((gain > doubt / 2 * left) | (step.norm(dim=1) > _FARTHER / 2)))[:, 0]
    if not len(tried):
        return [part]
    lens = freed(part.lens)
    moved = fit_smooth_lens(part.counts[tried], lens, initial=begin[tried], fine_iterations=_CENTRE_ITERATIONS)
    fixed = _rows(part, tried.tolist())
    known = torch.cat([fixed.result.parameters, places(fixed.result, part.lens)], 1)
    gain = deviance(fixed.counts, known, lens) - deviance(fixed.counts, moved.parameters, lens)
    off = (places(moved, lens) - places(fixed.result, part.lens)).norm(dim=1)
    explained = moved.chi2 < (part.noise + GRACE * (2 / pixels).sqrt())[tried]
    real = gain > _GAIN
    taken = real & (explained | (gain > _MOST * left[tried]) | (off > _FARTHER))
    doubted = real & ~explained & (taken | (gain > (doubt * left)[tried]))
    images = [
        replace(image, notes=(*image.notes, f"lens found at ({x:.3f}, {y:.3f}) arcsec from the image's centre"))
        for image, (x, y) in zip(fixed.images, (places(moved, lens) - centres_of(fixed.images)).tolist(), strict=True)
    ]
    other = Fitted(fixed.names, images, fixed.counts, lens, moved)
    parts = []
    for one, two, which in ((fixed, other, ~taken), (other, fixed, taken)):
        for sure in (True, False):
            rows = torch.nonzero(which & (doubted != sure))[:, 0].tolist()
            if rows:
                parts.append(replace(_rows(one, rows), rival=None if sure else _rows(two, rows)))
    rest = sorted(set(range(len(part.names))) - set(tried.tolist()))
    return [*([_rows(part, rest)] if rest else []), *parts]


def _rows(part: Fitted, rows: list[int], *, with_rival: bool = False) -> Fitted:
    """Take some images of a specialist's part, with their rivals or without."""
    rival = _rows(part.rival, rows) if with_rival and part.rival else None
    names, taken = [part.names[i] for i in rows], [part.images[i] for i in rows]
    return Fitted(names, taken, part.counts[rows], part.lens, part.result.rows(rows), rival)


def centres_of(prepared: Sequence[Prepared]) -> Tensor:
    """Return the images' own centres on the grid.

    Parameters
    ----------
    prepared : sequence of Prepared
        The images.

    Returns
    -------
    Tensor
        (B, 2) of (x, y), arcsec.
    """
    return torch.tensor([image.centre for image in prepared], dtype=torch.float64)


def logits_of(part: Fitted, classifier: Classifier, tta: bool) -> Tensor:
    """Predict the images of a part.

    Parameters
    ----------
    part : Fitted
        The images.
    classifier : Classifier
        The network.
    tta : bool
        Average over the eight symmetries of the square.

    Returns
    -------
    Tensor
        Logits (B, C), in the order of CLASSES.
    """
    return predict_logits(classifier.network, [batch_for(part, classifier)], tta)


def batch_for(part: Fitted, classifier: Classifier, maps: Tensor | None = None) -> LensBatch:
    """Make what a network reads of the images of a part.

    Parameters
    ----------
    part : Fitted
        The images.
    classifier : Classifier
        The network.
    maps : Tensor, optional
        (B, N, N) their significance, where it is known.

    Returns
    -------
    LensBatch
        The batch, finite: of an image that nothing fits there is nothing to read, and its flags withhold the label.
    """
    grid = None if part.images[0].standard else classifier.grid
    batch = network_batch(part.counts, part.result, part.lens, grid, maps)
    entries = batch.entries().items()
    return LensBatch(**{name: v.nan_to_num(0.0, 0.0, 0.0) if v.is_floating_point() else v for name, v in entries})


def doubtful(part: Fitted, answers: Tensor, classifier: Classifier, tta: bool) -> list[bool]:
    """Say whether each image's label is another with its lens where the rival fit has it.

    Parameters
    ----------
    part : Fitted
        The images.
    answers : Tensor
        (B, C) their logits or probabilities.
    classifier : Classifier
        The network.
    tta : bool
        Average over the eight symmetries of the square.

    Returns
    -------
    list of bool
        One for each image; False without a rival.
    """
    if part.rival is None:
        return [False] * len(part.names)
    return (logits_of(part.rival, classifier, tta).argmax(1) != answers.argmax(1)).tolist()


def _scaled_by_source(prepared: Sequence[Prepared], grid: Observation) -> list[Prepared]:
    """Images whose photon scale is rough brought to where a fit finds the preset's source and sky, where it finds them.

    An image whose source is another than the preset's stays as it is, to be fitted with a source and sky of its own.
    """
    out, standard = list(prepared), lens_of(grid)
    groups: dict[int, tuple[SmoothLensModel, list[int]]] = {}
    for i, image in enumerate(prepared):
        if image.rough and image.standard:
            out[i] = replace(image, standard=False)
            lens = choose_lens(out[i], grid)
            groups.setdefault(id(lens), (lens, []))[1].append(i)
    for lens, members in groups.values():
        result = fit_smooth_lens(torch.from_numpy(np.stack([out[i].pixels for i in members])), lens)
        columns = [lens.free.index(name) for name in ("amplitude", "sky")]
        for i, (amplitude, sky) in zip(members, result.parameters[:, columns].tolist(), strict=True):
            image, scale = out[i], standard.constants["amplitude"] / amplitude
            if abs(math.log(scale)) < _SCALE_DOUBT:
                pixels = ((image.pixels - sky * lens.binning**2) * scale + grid.sky).astype(np.float32)
                notes = (*image.notes, f"counts scaled by {scale:.3f} to the source that a fit finds")
                out[i] = replace(image, pixels=pixels, standard=True, sky=grid.sky, notes=notes)
    return out


def network_batch(
    counts: Tensor,
    result: FitResult,
    lens: SmoothLensModel,
    grid: Observation | None = None,
    maps: Tensor | None = None,
) -> LensBatch:
    """Make what the networks read of a batch of images, as seen from the lens.

    Parameters
    ----------
    counts : (B, N, N)
        Photons.
    result, lens
        The fit and its model.
    grid : Observation, optional
        That which a network was trained on, where the images have another sky: their counts are brought to its sky's
        level and noise. Residual and significance are in standard deviations and need nothing.
    maps : Tensor, optional
        (B, N, N) their significance, which is computed where it is not given.

    Returns
    -------
    LensBatch
        `counts`, `residual` and `significance` (B, N, N), `fit` (B, 7); float32.
    """
    maps = maps_of(counts, result, lens) if maps is None else maps
    batch = replace(LensBatch.of_fit(counts, result, maps), **seen_from_lens(result.residual, maps, result, lens))
    if grid is not None and grid.sky > 0:
        skies = torch.full((len(counts),), lens.constants["sky"], dtype=torch.float64)
        if "sky" in lens.free:
            skies = result.parameters[:, lens.free.index("sky")]
        sky = (skies * lens.binning**2)[:, None, None]
        batch = replace(batch, counts=((batch.counts - sky) * (grid.sky / sky).sqrt() + grid.sky).float())
    return batch


def maps_of(counts: Tensor, result: FitResult, lens: SmoothLensModel) -> Tensor:
    """Return the significance maps of a fit.

    Parameters
    ----------
    counts : Tensor
        (B, N, N) photons per pixel.
    result : FitResult
        Their fit.
    lens : SmoothLensModel
        What was fitted.

    Returns
    -------
    Tensor
        (B, N, N) in standard deviations.
    """
    if isinstance(result, MarginalFit):
        return result.significance
    return significance_maps(counts, result.parameters, lens)


def default_weights() -> Path:
    """Return the path of the package's weights.

    Returns
    -------
    Path
        A safetensors file.

    Raises
    ------
    D4LensError
        If they are missing.
    """
    if not WEIGHTS.is_file():
        raise D4LensError(f"the package holds no weights ({WEIGHTS.name}); train a model and name its file: --weights")
    return WEIGHTS


def prepare_source(
    source: ImageSource, grid: Observation, instrument: Instrument, own_pixels_for: str = SPECIALIST
) -> Prepared:
    """Read one image as photon counts on the pixels of a grid.

    Parameters
    ----------
    source : ImageSource
        The image.
    grid : Observation
        The network's pixels.
    instrument : Instrument
        What is known of the instrument.
    own_pixels_for : str
        One of MODELS: MARGINAL keeps the image's own pixels, AUTO does where none sum to the grid's.

    Returns
    -------
    Prepared
        The image.

    Raises
    ------
    D4LensError
        For an image that cannot be read, or whose pixels do not fit the grid's field.
    """
    raw = source.read(instrument.band)
    scale = instrument.pixel_scale or raw.header.pixel_scale
    field = grid.n_pixels * grid.pixel_scale
    if scale is not None and scale * images.MIN_SIDE > field:
        raise D4LensError(
            f"pixels of {scale:g} arcsec are too coarse: at least {images.MIN_SIDE} a side must fit into the field of "
            f"{field:g} arcsec; check the pixel scale, which is in arcsec"
        )
    if scale is not None and scale * max(raw.pixels.shape) < images.MIN_SIDE * grid.pixel_scale:
        raise D4LensError(
            f"pixels of {scale:g} arcsec are too fine: the image would span {scale * max(raw.pixels.shape):.3g} arcsec of a "
            f"field of {field:g}; check the pixel scale, which is in arcsec"
        )
    if scale is not None and own_pixels_for != SPECIALIST:
        factor = grid.pixel_scale / scale
        if own_pixels_for == MARGINAL or round(factor) < 1 or abs(factor / round(factor) - 1) > images.SAME_SCALE:
            grid = _own_grid(raw.pixels.shape, scale, grid)
    return images.prepare(raw, grid, instrument)


def _own_grid(shape: tuple[int, ...], scale: float, grid: Observation) -> Observation:
    """Return the pixels of an image (H, W) within the field of `grid`."""
    within = int(grid.n_pixels * grid.pixel_scale / scale + 1e-6)
    n = min(max(shape), within - (within - max(shape)) % 2)
    return Observation(n, scale, grid.psf_sigma, grid.sky * (scale / grid.pixel_scale) ** 2)


@lru_cache(maxsize=8)
def lens_of(observation: Observation) -> SmoothLensModel:
    """Return the smooth lens on given pixels, sampled on the preset's own finer ones where these are binned to them.

    Parameters
    ----------
    observation : Observation
        The pixels.

    Returns
    -------
    SmoothLensModel
        The preset's lens.
    """
    native = preset_model(DEFAULT_PRESET).observation
    binning = max(1, round(observation.pixel_scale / native.pixel_scale))
    if native.binned(binning) != observation:
        native, binning = observation, 1
    return preset_model(DEFAULT_PRESET, native, binning)


def choose_lens(image: Prepared, grid: Observation, free: tuple[str, ...] = ()) -> SmoothLensModel:
    """Choose the smooth lens to fit to an image.

    It is the preset's for an image like the published ones. For any other the source's brightness is fitted too, and the
    sky where the user has not given it.

    Parameters
    ----------
    image : Prepared
        The image on the pixels of `grid`.
    grid : Observation
        The network's.
    free : tuple of str
        Parameters to fit beyond these.

    Returns
    -------
    SmoothLensModel
        The lens.

    Raises
    ------
    D4LensError
        For a name that is no parameter of the smooth lens.
    """
    for name in free:
        if name not in PARAMETERS:
            raise D4LensError(
                f"{name!r} is no parameter of the smooth lens; those that can be freed: {_listed(PARAMETERS)}"
            )
    if image.standard and not free:
        return lens_of(grid)
    # Powers of two: only where the fit sets out from, and few models for many images.
    scale = None
    if image.units == COUNTS:
        peak = max(float(np.nanmax(image.pixels)) - image.sky, 1.0)
        scale = _near(peak / 10), image.sky if image.sky_known else _near(image.sky)
    return _own_lens(grid, image.psf_sigma, image.psf_shape, image.centre, scale, image.sky_known, free)


@lru_cache(maxsize=64)
def _own_lens(
    grid: Observation,
    psf_sigma: float,
    psf_shape: Gaussians,
    centre: tuple[float, float],
    scale: tuple[float, float] | None,
    sky_known: bool,
    extra: tuple[str, ...],
) -> SmoothLensModel:
    step = preset_model(DEFAULT_PRESET).observation.pixel_scale
    b = max(1, round(grid.pixel_scale / step))
    fine = grid.pixel_scale / b
    # Summing b samples blurs by itself.
    sigma, shape = with_variance(psf_sigma, psf_shape, -(grid.pixel_scale**2 - fine**2) / 12, fine / 4)
    observation = Observation(grid.n_pixels * b, fine, sigma, 1.0)
    unknown = ("amplitude",) if sky_known else ("amplitude", "sky")
    names = [name for name in PARAMETERS if name in (*FIT_COLUMNS, *unknown, *extra)]
    base = preset_model(DEFAULT_PRESET, observation, b, free=names, units="normalised")
    constants = {**base.constants, "lens_x": centre[0], "lens_y": centre[1]}
    if scale is not None:
        constants |= {"amplitude": scale[0] / b**2, "sky": scale[1] / b**2}
    return base.replaced(constants=constants, psf_shape=shape)


def _near(value: float) -> float:
    """Round to the nearest power of two."""
    return 2.0 ** round(math.log2(max(value, 1e-3)))


def undecided(probabilities: Tensor, classifier: Classifier) -> list[Raised]:
    """Return the flag of an answer that no class is likely enough to be, or nothing.

    Parameters
    ----------
    probabilities : Tensor
        Of the classes, (3,).
    classifier : Classifier
        Whose they are.

    Returns
    -------
    list of Raised
        `Flag.UNDECIDED` at most.
    """
    return [Raised(Flag.UNDECIDED)] if float(probabilities.max()) < classifier.decided else []


def flags_of(part: Fitted, i: int, classifier: Classifier | None = None) -> list[Raised]:
    """Return the flags of an image: those of its fit, and those of what a network says of it.

    Parameters
    ----------
    part : Fitted
        Fitted images.
    i : int
        Which of them.
    classifier : Classifier, optional
        The network.

    Returns
    -------
    list of Raised
        The flags.
    """
    chi2, image, lens = float(part.result.chi2[i]), part.images[i], part.lens
    raised = []
    if not part.result.converged[i]:
        raised.append(Raised(Flag.NOT_CONVERGED))
    walls = [lens.priors[name] for name in lens.free]
    values = zip(lens.free, part.result.parameters[i].tolist(), walls, strict=False)
    pressed = [name for name, value, wall in values if not wall.lower < value < wall.upper]
    if part.model == MARGINAL:
        pressed = [name for name in pressed if name not in NUISANCE]
    if pressed:
        raised.append(Raised(Flag.AT_ITS_BOUND, ", ".join(pressed)))
    if isinstance(part.result, MarginalFit) and part.result.arcs_chi2[i] > _POOR:
        raised.append(Raised(Flag.POOR_FIT, f"chi2 {float(part.result.arcs_chi2[i]):.2f} on the arcs"))
    counts = part.counts[i]
    seen = torch.isfinite(counts)
    if not seen.all():
        light = part.result.model_counts[i].double()
        light = light - light.min()
        if float(light[seen].sum()) < _RING * float(light.sum()):
            raised.append(Raised(Flag.UNSEEN_RING))
    off = places(part.result, lens)[i] - centres_of([image])[0]
    if float(off.norm()) > _PIXELS * max(image.pixel_scale, lens.observation.pixel_scale):
        raised.append(Raised(Flag.OFF_CENTRE))
    if classifier is not None and classifier.model not in (AUTO, part.model):
        raised.append(Raised(Flag.OTHER_MAPS, f"{part.model}, not {classifier.model}"))
    elif classifier is not None and part.has_light:
        raised.append(Raised(Flag.OTHER_MAPS, "with the lens galaxy's light, not without"))
    elif classifier is not None and classifier.largest_chi2 is not None and chi2 > classifier.largest_chi2:
        raised.append(Raised(Flag.UNLIKE_TRAINING))
    if image.units != COUNTS:
        raised.append(Raised(Flag.NO_COUNTS))
    elif chi2 < image.noise - _SIGMAS * math.sqrt(2 / max(int(seen.sum()), 1)):
        raised.append(Raised(Flag.TOO_LITTLE_NOISE))
    if image.rough:
        raised.append(Raised(Flag.ROUGH_SCALE))
    return [*raised, *image.flags]


_Broken = list[tuple[str, str]]


def fitted_batches(
    sources: Sequence[ImageSource],
    grid: Observation,
    instrument: Instrument,
    way: Way,
    progress: bool,
    *,
    own_pixels: bool = False,
) -> Iterator[tuple[list[Fitted], _Broken]]:
    """Fit images in batches. The next batch is read meanwhile, so memory does not grow with the number of images.

    Parameters
    ----------
    sources : sequence of ImageSource
        The images.
    grid : Observation
        The network's pixels.
    instrument : Instrument
        What is known of the instrument.
    way : Way
        Which smooth lens is fitted.
    progress : bool
        Whether to show how far it has come.
    own_pixels : bool
        Whether `way` may keep the images' own pixels, as `prepare_source` does.

    Yields
    ------
    fitted : list of Fitted
        The images of a batch.
    broken : list of (str, str)
        Name and reason of those that could not be read.
    """
    sources = instrument.joined(sources)
    pixels_for = way.model if own_pixels else SPECIALIST

    def read(part: Sequence[ImageSource]) -> tuple[list[str], list[Prepared], _Broken]:
        names, ready, broken = [], [], []
        for source in part:
            try:
                ready.append(prepare_source(source, grid, instrument, pixels_for))
                names.append(source.name)
            except D4LensError as error:
                broken.append((source.name, readable(str(error))))
        return names, ready, broken

    parts = [sources[first : first + _BATCH] for first in range(0, len(sources), _BATCH)]
    done = 0
    with ThreadPoolExecutor(1) as pool, Meter(len(sources), "images") if progress else nullcontext() as meter:
        ahead = pool.submit(read, parts[0] if parts else [])
        for part, following in zip(parts, [*parts[1:], []], strict=True):
            names, ready, broken = ahead.result()
            ahead = pool.submit(read, following)
            yield fit_images(names, ready, grid, way), broken
            done += len(part)
            if meter is not None:
                meter.to(done)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
