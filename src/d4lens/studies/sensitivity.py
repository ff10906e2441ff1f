"""Sensitivity: the physical limit and how near the networks come, for any image and for a single subhalo, and what they recover."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import kstest
from torch import Tensor, nn

from d4lens.classes import CLASSES
from d4lens.data import arrays
from d4lens.detection import matched_filter, simulate_false_alarms, whitened
from d4lens.errors import D4LensError
from d4lens.macrofit import FIT_COLUMNS, SmoothLensModel, fit_smooth_lens, preset_model, significance_maps
from d4lens.macrofit.threads import in_threads
from d4lens.models.averaging import Images
from d4lens.models.batch import LensBatch
from d4lens.observation import Observation, bin_pixels
from d4lens.params import Count, Fraction, NonNegative, ParameterGroup, Positive, Seed
from d4lens.progress import Meter
from d4lens.results import charts, metrics
from d4lens.results.outcome import Outcome, record
from d4lens.simulator import Preset, Truth, preset, render, substructure_convergence
from d4lens.studies import detectors, physical_limit, recovery
from d4lens.studies.networks import first_networks
from d4lens.studies.study import Drawing, Inputs, Study
from d4lens.train.lenses import load_lenses

Record = dict[str, Any]

MAPS_READ = ("counts", "residual", "significance", "fit")
"""What a batch holds for any arm and for the recovery."""
NETWORK, NO_NETWORK, OTHER = "network", "significance map, no network", "network, truth of another image"
STRONGEST = "largest significance, no network"
"""The detector without a network: the highest value of the map of where one more mass would explain the residual."""
SEARCHES, DETECT = "ideal that must search", "d4lens detect, no network"
"""The best detector that knows the shape but not the place, and the command's own: its probability of a false alarm."""
CONSTANT, RADIUS, CHI2 = "one mass for all", "Einstein radius", "chi2 and Einstein radius, no network"
WITH_RADIUS, TOGETHER = "network and Einstein radius", "network, chi2 and Einstein radius"
FIDUCIAL = {
    "theta_E": 1.27,
    "gamma": 0.1,
    "gamma_phi": 0.0,
    "source_x": 0.15,
    "source_y": 0.1,
    "source_q": 0.7,
    "source_phi": 0.0,
}
"""The lens of the map over places: the simulator's mean lens, its source a little off the axis."""
_CHUNK, _BATCH = 256, 64  # images at once, and through a network
_DIGITS = 4  # of correlations and relative errors: below them lies float32
_RING = (0.7, 1.3)  # Einstein radii within which a subhalo counts as on the ring


class Places(ParameterGroup):
    """The grid of places (arcsec) of one subhalo of `mass` (Msun), and its noises."""

    side: Count
    half_width: Positive
    mass: Positive
    repeats: Count


class Parameters(ParameterGroup):
    """Group `sensitivity`: masses in Msun, radii in Einstein radii."""

    arms: list[str]
    recover: str
    false_positive_rate: Fraction
    mass_edges: list[Positive]
    radius_edges: list[NonNegative]
    per_cell: Count
    places: Places
    recover_images: Count
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


def _row(
    quantity: str, of: str, by: str, measured: Sequence[float], n: int, bins: Mapping[str, float] | None = None
) -> Record:
    """Make a record of the study; `measured` holds the value, and its interval where it has one."""
    value, low, high = (*measured, math.nan, math.nan)[:3]
    return record(value, low, high, n) | {"quantity": quantity, "class": of, "by": by, **(bins or {})}


@dataclass(frozen=True)
class FittedSplit:
    """The test split with its truth and its fits.

    Attributes
    ----------
    counts : ndarray
        (n, N, N) photon counts.
    labels : ndarray
        (n,) class indices.
    paths : list of str
        Of the n images.
    truth : Truth
        Of the simulator.
    made_by : Preset
        The preset that made the images.
    lens : SmoothLensModel
        The smooth lens.
    fitted : Tensor
        (n, F) its fitted parameters.
    strongest : ndarray
        (n,) largest value of each image's significance map.
    """

    counts: NDArray[Any]
    labels: NDArray[np.int64]
    paths: list[str]
    truth: Truth
    made_by: Preset
    lens: SmoothLensModel
    fitted: Tensor
    strongest: NDArray[np.float64]


@dataclass(frozen=True)
class Blind:
    """Detectors that search without a network, and what they find in images without substructure.

    Attributes
    ----------
    search : physical_limit.Search
        What the ideal one searches in.
    ratios : ndarray
        (n,) its statistic in n images without substructure.
    p_false : ndarray
        (n,) of `detection.false_alarms` in them.
    """

    search: physical_limit.Search
    ratios: NDArray[np.float64]
    p_false: NDArray[np.float64]


def blind(split: FittedSplit, params: Parameters) -> Blind:
    """Let the detectors that search without a network look at the test split's images without substructure.

    Parameters
    ----------
    split : FittedSplit
        The test split.
    params : Parameters
        The study's group.

    Returns
    -------
    Blind
        The search, and what it says of each image.
    """
    halo = float(split.truth.images["halo_mass"].iloc[0])
    low, high = params.mass_edges[0] / halo, params.mass_edges[-1] / halo
    search = physical_limit.Search((params.radius_edges[0], params.radius_edges[-1]), (low, high))
    no = np.flatnonzero(split.labels == CLASSES.index("no"))
    counts = torch.from_numpy(split.counts[no].astype(np.float32))
    return Blind(search, *searched(search, counts, split.fitted[no], split.lens))


def searched(
    search: physical_limit.Search, counts: Tensor, fitted: Tensor, lens: SmoothLensModel
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Run the searches without a network on images.

    Parameters
    ----------
    search : physical_limit.Search
        The ideal search.
    counts : Tensor
        (n, N, N) photons per pixel of `lens`.
    fitted : Tensor
        (n, F) parameters of the smooth lens.
    lens : SmoothLensModel
        The smooth lens.

    Returns
    -------
    ratios : numpy.ndarray
        (n,) the ideal search's statistic.
    p_false : numpy.ndarray
        (n,) the probability of a false alarm that `detect` gives.
    """

    def one(row: tuple[Tensor, Tensor]) -> tuple[float, float]:
        image, residual = matched_filter(*row, lens), whitened(*row, lens)
        law = simulate_false_alarms(image, row[0])
        highest = image.highest(residual[None]).numpy()
        return search.statistic(*row, lens), float(law.probability(highest)[0])

    found = in_threads(one, list(zip(counts, fitted, strict=True)), torch.get_num_threads())
    ratios, p_false = (
        (np.array(values, np.float64) for values in zip(*found, strict=True)) if found else np.empty((2, 0))
    )
    return ratios, p_false


def fitted_split(arrays_folder: str | Path, macrofit_folder: str | Path) -> FittedSplit:
    """Read the test split.

    Parameters
    ----------
    arrays_folder, macrofit_folder : str or Path
        Outs of the stages `preprocess` and `macrofit`.

    Returns
    -------
    FittedSplit
        Images, truth and fits.

    Raises
    ------
    D4LensError
        If the images have no truth or no photon counts, or the fits are of other images or of another smooth lens.
    """
    facts, images = arrays.load_facts(arrays_folder), arrays.load_split(arrays_folder, "test")
    truth = arrays.load_truth(arrays_folder, "test")
    if truth is None or facts["units"] != "counts":
        raise D4LensError(
            "the physical limit needs simulated images in photon counts; take the study out of the profile's `studies`"
        )
    native = Observation.from_dict(facts["native"])
    name = str(truth.images["preset"].iloc[0])
    lens = preset_model(name, native, facts["bin"])
    if lens.free != FIT_COLUMNS:
        raise D4LensError(
            f"the physical limit is worked out for fits of {', '.join(FIT_COLUMNS)} alone, not of {name}'s"
        )
    table = pd.read_csv(Path(macrofit_folder) / "test_fit.csv", float_precision="round_trip")
    if list(table["path"]) != images.paths:
        raise D4LensError(f"the fit in {macrofit_folder} is of other images; run the macrofit stage again")
    fitted = torch.from_numpy(table[list(FIT_COLUMNS)].to_numpy(np.float64))
    maps = np.load(Path(macrofit_folder) / "test_significance.npy", mmap_mode="r", allow_pickle=False)
    strongest = maps.max((1, 2)).astype(np.float64)
    made_by = preset(name, native.to_dict())
    return FittedSplit(images.counts, images.labels, images.paths, truth, made_by, lens, fitted, strongest)


def evidence_by_arm(
    predicted: Mapping[str, Path], view: str, labels: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Read the evidence for substructure from the files of the arms' predictions.

    Parameters
    ----------
    predicted : mapping of str to Path
        The files by arm.
    view : str
        One of VIEWS.
    labels : numpy.ndarray
        (n,) the images' own, indices into CLASSES.

    Returns
    -------
    dict of str to numpy.ndarray
        (n,) by arm.

    Raises
    ------
    D4LensError
        For predictions of other images.
    """
    found = {}
    for arm, path in predicted.items():
        _, scored, values = detectors.scored(path, view)
        if not np.array_equal(scored, labels):
            raise D4LensError(f"{path} holds predictions of other images; run evaluate again")
        found[arm] = values
    return found


@dataclass(frozen=True)
class Limit:
    """gain, measured: chi-squared (n,) of each image's substructure; curve as of `physical_limit.curve`; rows of the study."""

    gain: NDArray[np.float64]
    measured: NDArray[np.float64]
    curve: pd.DataFrame
    records: list[Record]


def limit(split: FittedSplit, predicted: Mapping[str, Path], false_positive_rate: float) -> Limit:
    """Measure what each image's substructure gains in chi-squared, and how often it is detected.

    The detectors are each arm with TTA, and the significance map without a network.

    An arm detects what exceeds the threshold that the given share of the images without substructure exceeds.

    Parameters
    ----------
    split : FittedSplit
        The test split.
    predicted : mapping of str to Path
        The files of the predictions by arm.
    false_positive_rate : float
        The share, between 0 and 1.

    Returns
    -------
    Limit
        Gains, rates and rows of the study.
    """
    counts, labels, lens = split.counts, split.labels, split.lens
    expected, measured = [], []
    with Meter(len(counts), "physical limit") as meter:
        for first in range(0, len(counts), _CHUNK):
            rows = np.arange(first, min(first + _CHUNK, len(counts)))
            mean = physical_limit.mean_counts(split.truth.rows(rows), split.made_by, lens.binning)
            expected.append(physical_limit.gain(mean, lens, split.fitted[rows]))
            smooth = torch.cat([lens.image(part) for part in split.fitted[rows].split(32)])
            pixels = torch.from_numpy(counts[rows].astype(np.float64))
            measured.append(physical_limit.measured_gain(pixels, smooth, mean, len(lens.free)))
            meter.to(int(rows[-1]) + 1)
    gained, seen = np.concatenate(expected), np.concatenate(measured)
    no = labels == CLASSES.index("no")
    scores = evidence_by_arm(predicted, "tta", labels) | {STRONGEST: split.strongest}
    detected = {arm: e > detectors.threshold(e[no], false_positive_rate) for arm, e in scores.items()}
    ideal = physical_limit.ideal_rate(gained, false_positive_rate)
    curve = physical_limit.curve(gained[~no], {arm: found[~no] for arm, found in detected.items()}, ideal[~no])
    records = curve_records(curve, "any")
    for name in ("sphere", "vort"):
        here = labels == CLASSES.index(name)
        n, share = int(here.sum()), float(ideal[here].mean()) if here.any() else math.nan
        records.append(_row("detected", name, "ideal", (share, share, share), n))
        for arm, found in detected.items():
            hits = int(found[here].sum())
            records.append(_row("detected", name, arm, (hits / n if n else math.nan, *metrics.wilson(hits, n)), n))
        median = recovery.median_interval(np.sqrt(np.maximum(gained[here], 0)), 500, 1)
        records.append(_row("median_sigma", name, "ideal", [round(v, 3) for v in median], n))
    for name, which in (("no", no), ("any", ~no)):
        pull = (seen[which] - gained[which]) / np.sqrt(4 * gained[which] + 2 * len(lens.free))
        centre, error = _mean(pull)
        records.append(_row("gain_pull", name, "ideal", (centre, centre - error, centre + error), len(pull)))
    largest = round(float(gained[no].max()), 2) if no.any() else math.nan
    records.append(_row("largest_gain", "no", "ideal", (largest,), int(no.sum())))
    return Limit(gained, seen, curve, records)


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval."""
    if len(values) < 2:
        return math.nan, math.nan
    return round(float(values.mean()), 3), round(1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)), 3)


def detections(
    truth: Truth,
    made_by: Preset,
    lens: SmoothLensModel,
    arms: Mapping[str, nn.Module],
    above: Mapping[str, float],
    false_positive_rate: float,
    without: Blind | None = None,
) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
    """Simulate and fit images, and let each arm detect their substructure in the plain view.

    Parameters
    ----------
    truth : Truth
        Of n images.
    made_by : Preset
        Renders them.
    lens : SmoothLensModel
        Is fitted to them.
    arms : mapping
        Networks by name.
    above : mapping
        Threshold of each arm's evidence, and of STRONGEST.
    false_positive_rate : float
        Of the ideal detector, and of DETECT.
    without : Blind, optional
        Detectors that search, in images without substructure; None leaves them out.

    Returns
    -------
    ndarray
        (n,) chi-squared that the substructure gains.
    dict of ndarray
        (n,) booleans for each arm, STRONGEST and the two of `without`; under `ideal` the probability that the ideal detector finds it.
    """
    every = []
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in ("ideal", *arms, STRONGEST)}
    if without is not None:
        least = detectors.threshold(without.ratios, false_positive_rate)
        found |= {SEARCHES: [], DETECT: []}
    n = len(truth)
    with Meter(n, "single subhalos") as meter:
        for first in range(0, n, _CHUNK):
            part = truth.rows(np.arange(first, min(first + _CHUNK, n)))
            counts = bin_pixels(render(part, made_by), lens.binning).float()
            result = fit_smooth_lens(counts, lens)
            batch = LensBatch.of_fit(counts, result, significance_maps(counts, result.parameters, lens))
            gained = physical_limit.gain(
                physical_limit.mean_counts(part, made_by, lens.binning), lens, result.parameters
            )
            every.append(gained)
            found["ideal"].append(physical_limit.ideal_rate(gained, false_positive_rate))
            for name, network in arms.items():
                found[name].append(detectors.evidence(detectors.logits(network, batch)) > above[name])
            found[STRONGEST].append(batch.need("significance").flatten(1).amax(1).double().numpy() > above[STRONGEST])
            if without is not None:
                ratios, p_false = searched(without.search, counts, result.parameters, lens)
                found[SEARCHES].append(ratios > least)
                found[DETECT].append(p_false < false_positive_rate)
            meter.to(min(first + _CHUNK, n))
    return np.concatenate(every), {name: np.concatenate(parts) for name, parts in found.items()}


def _thresholds(
    split: FittedSplit, arms: Iterable[str], predicted: Mapping[str, Path], rate: float
) -> dict[str, float]:
    """Find by arm the evidence that the given share of the test split's images without substructure exceeds, plain view."""
    no = split.labels == CLASSES.index("no")
    scores = evidence_by_arm({arm: predicted[arm] for arm in arms}, "plain", split.labels) | {
        STRONGEST: split.strongest
    }
    return {arm: detectors.threshold(values[no], rate) for arm, values in scores.items()}


def subhalo_map(
    split: FittedSplit, arms: Mapping[str, nn.Module], predicted: Mapping[str, Path], params: Parameters, without: Blind
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Map the detection rate of a single subhalo over its mass and radius, and over its significance.

    Parameters
    ----------
    split : FittedSplit
        The test split.
    arms : mapping of str to nn.Module
        The networks.
    predicted : mapping of str to Path
        The files of the predictions by arm.
    params : Parameters
        The study's group.
    without : Blind
        What the searches say of images without substructure.

    Returns
    -------
    cells : pandas.DataFrame
        As of `physical_limit.rates`.
    curve : pandas.DataFrame
        As of `physical_limit.curve`.
    """
    rate, edges = params.false_positive_rate, (params.mass_edges, params.radius_edges)
    masses, radii, azimuths = physical_limit.grid_of(*edges, params.per_cell, params.seed)
    truth = physical_limit.one_subhalo(split.made_by, params.seed, masses, radii, azimuths)
    above = _thresholds(split, arms, predicted, rate)
    gained, found = detections(truth, split.made_by, split.lens, arms, above, rate, without)
    seen = {name: hits for name, hits in found.items() if name != "ideal"}
    return physical_limit.rates(masses, radii, found, *edges), physical_limit.curve(gained, seen, found["ideal"])


def place_map(
    split: FittedSplit, arms: Mapping[str, nn.Module], predicted: Mapping[str, Path], params: Parameters
) -> pd.DataFrame:
    """Map the detection rate of a subhalo of one mass over its place in the fiducial lens.

    Parameters
    ----------
    split : FittedSplit
        The test split.
    arms : mapping of str to nn.Module
        The networks.
    predicted : mapping of str to Path
        The files of the predictions by arm.
    params : Parameters
        The study's group.

    Returns
    -------
    pandas.DataFrame
        Columns arm, x, y (arcsec), rate, images.
    """
    rate, at = params.false_positive_rate, params.places
    native = split.made_by.observation
    made_by = preset("deeplense", {**native.to_dict(), **FIDUCIAL})
    axis = np.linspace(-at.half_width, at.half_width, at.side)
    y, x = (np.repeat(plane.ravel(), at.repeats) for plane in np.meshgrid(axis, axis, indexing="ij"))
    radius = np.hypot(x, y) / FIDUCIAL["theta_E"]
    # Another seed's lenses differ in their noise alone: everything else is fixed.
    truth = physical_limit.one_subhalo(made_by, params.seed + 1, np.full(len(x), at.mass), radius, np.arctan2(y, x))
    above = _thresholds(split, arms, predicted, rate)
    _, found = detections(truth, made_by, split.lens, arms, above, rate)
    shares = {arm: hits.reshape(-1, at.repeats).mean(1) for arm, hits in found.items()}
    place = {"x": x[:: at.repeats].round(6), "y": y[:: at.repeats].round(6)}
    tables = [
        pd.DataFrame({"arm": arm, **place, "rate": s.round(6), "images": at.repeats}) for arm, s in shares.items()
    ]
    return pd.concat(tables, ignore_index=True)


def recovered_maps(network: nn.Module, images: Images, truth: Truth | None, at_most: int) -> recovery.Maps:
    """Take `recovery.maps` of images evenly spread over a split, which is sorted by class.

    Parameters
    ----------
    network : nn.Module
        The network.
    images : Images
        `images[rows]` is the batch of these rows, as `train.lenses.Lenses` gives it with MAPS_READ and the convergence.
    truth : Truth
        Of the split.
    at_most : int
        Images taken.

    Returns
    -------
    recovery.Maps
        The maps.
    """
    assert truth is not None  # `fitted_split` has refused images without
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), at_most)).round().astype(np.int64))
    batches = (images[rows[first : first + _BATCH].tolist()] for first in range(0, len(rows), _BATCH))
    return recovery.maps(network, batches, truth.images["rod_theta_E"].to_numpy(np.float64)[rows])


@dataclass(frozen=True)
class Recovered:
    """records of the study, and `masses`: estimator, true, found (arcsec²) of every rod of the test split."""

    records: list[Record]
    masses: pd.DataFrame


def _estimates(*names: str) -> Callable[[recovery.Maps, float], NDArray[np.float64]]:
    def columns(m: recovery.Maps, pixel_scale: float) -> NDArray[np.float64]:
        known = {
            "network": lambda: recovery.kappa_mass(m.predicted, pixel_scale),
            "radius": lambda: m.theta_E**2,
            "chi2": lambda: m.chi2 - 1,
        }
        return np.stack([known[name]() for name in names], 1) if names else np.empty((len(m.labels), 0))

    return columns


_MASSES = {
    CONSTANT: _estimates(),
    RADIUS: _estimates("radius"),
    CHI2: _estimates("radius", "chi2"),
    NETWORK: _estimates("network"),
    WITH_RADIUS: _estimates("radius", "network"),
    TOGETHER: _estimates("radius", "chi2", "network"),
}


def recover(select: recovery.Maps, test: recovery.Maps, pixel_scale: float, n_resamples: int, seed: int) -> Recovered:
    """Measure how far the predicted convergence is the true one, and the rods' masses in it.

    Parameters
    ----------
    select : recovery.Maps
        Of the selection split, on which alone the masses are calibrated.
    test : recovery.Maps
        Of the test split.
    pixel_scale : float
        Arcsec per pixel.
    n_resamples : int
        Of the bootstrap.
    seed : int
        Of the resamples.

    Returns
    -------
    Recovered
        Records and what is drawn.
    """
    records = []

    def median(quantity: str, of: str, by: str, values: NDArray[np.float64]) -> None:
        measured = recovery.median_interval(values, n_resamples, seed)
        records.append(_row(quantity, of, by, [round(v, _DIGITS) for v in measured], len(values)))

    for name in ("sphere", "vort"):
        here = test.labels == CLASSES.index(name)
        predicted, true = test.predicted[here], test.true[here]
        peaks = np.maximum(test.significance[here], 0.0)
        median("correlation", name, NETWORK, recovery.correlations(predicted, true))
        median("correlation", name, NO_NETWORK, recovery.correlations(peaks, true))
        median("correlation", name, OTHER, recovery.correlations(predicted, np.roll(true, 1, axis=0)))
        for by, maps in ((NETWORK, predicted), (NO_NETWORK, peaks)):
            pooled = round(recovery.pooled_correlation(maps, true), _DIGITS)
            records.append(_row("pooled_correlation", name, by, (pooled,), int(here.sum())))
    rod, chosen = np.isfinite(test.rods), np.isfinite(select.rods)
    parts = [pd.DataFrame(columns=["estimator", "true", "found"])]
    for name, columns in _MASSES.items() if rod.any() and chosen.any() else ():
        before, after = (columns(m, pixel_scale) for m in (select, test))
        found = recovery.Scale.fitted(before[chosen], select.rods[chosen])(after[rod])
        median("rod_mass_error", "vort", name, recovery.relative_error(found, test.rods[rod]))
        parts.append(pd.DataFrame({"estimator": name, "true": test.rods[rod].round(6), "found": found.round(4)}))
    return Recovered(records, pd.concat(parts[1:] or parts, ignore_index=True))


def curve_records(curve: pd.DataFrame, of: str) -> list[Record]:
    """Turn detection rates over significance into rows of the study.

    Parameters
    ----------
    curve : pandas.DataFrame
        As of `physical_limit.curve`.
    of : str
        What it is of, the records' class.

    Returns
    -------
    list of dict
        A row for each arm and bin.
    """
    rows = []
    for r in curve.to_dict("records"):
        bins = {key: float(r[key]) for key in ("sigma_low", "sigma_high")}
        rows.append(_row("detected", of, r["arm"], (r["rate"], r["low"], r["high"]), r["images"], bins))
    return rows


def map_records(table: pd.DataFrame) -> list[Record]:
    """Turn the map over mass and radius into rows of the study.

    Parameters
    ----------
    table : pandas.DataFrame
        As of `physical_limit.rates`.

    Returns
    -------
    list of dict
        A row for each arm and cell.
    """
    keys = ("mass_low", "mass_high", "radius_low", "radius_high")
    rows = table.to_dict("records")
    return [
        _row(
            "detected_subhalo",
            "one subhalo",
            r["arm"],
            (r["rate"], r["low"], r["high"]),
            r["images"],
            {k: r[k] for k in keys},
        )
        for r in rows
    ]


def place_records(table: pd.DataFrame) -> list[Record]:
    """Take the mean detection rate over all places of the fiducial lens: what share of the field is open to a subhalo of its mass.

    Parameters
    ----------
    table : pandas.DataFrame
        As of `place_map`.

    Returns
    -------
    list of dict
        A row for each arm.
    """
    found = []
    for arm, rows in table.groupby("arm", sort=False):
        found.append(_row("detected_anywhere", "one subhalo", str(arm), (float(rows["rate"].mean()),), len(rows)))
    return found


def false_alarm_records(p_false: NDArray[np.float64], false_positive_rate: float) -> list[Record]:
    """Say how often DETECT alarms falsely, and how likely its probabilities are uniform as they should be (Kolmogorov-Smirnov).

    Parameters
    ----------
    p_false : numpy.ndarray
        (n,) its probabilities for images without substructure.
    false_positive_rate : float
        At which it alarms.

    Returns
    -------
    list of dict
        Two rows; none without images.
    """
    if not len(p_false):
        return []
    hits, n = int((p_false < false_positive_rate).sum()), len(p_false)
    uniform = round(float(kstest(p_false, "uniform").pvalue), _DIGITS)
    return [
        _row("false_alarms", "no", DETECT, (hits / n, *metrics.wilson(hits, n)), n),
        _row("p_false_uniform", "no", DETECT, (uniform,), n),
    ]


def half_masses(table: pd.DataFrame) -> list[Record]:
    """Find the mass that each arm detects every second time on the ring.

    Parameters
    ----------
    table : pandas.DataFrame
        As of `physical_limit.rates`.

    Returns
    -------
    list of dict
        A row for each arm, in Msun.
    """
    rows = []
    for arm in table["arm"].unique():
        mass = physical_limit.half_mass(table, arm, *_RING)
        rows.append(
            _row("half_mass_on_ring", "one subhalo", arm, (float(f"{mass:.3g}"),), int((table["arm"] == arm).sum()))
        )
    return rows


def sensitivity_answers(records: Sequence[Record], arm: str, false_positive_rate: float) -> list[str]:
    """Say the study's outcome in sentences.

    Parameters
    ----------
    records : sequence of dict
        The study's rows.
    arm : str
        The network spoken of.
    false_positive_rate : float
        At which it detects.

    Returns
    -------
    list of str
        The sentences.
    """
    found = {(r["quantity"], r["class"], r["by"]): r for r in records if "sigma_low" not in r and "mass_low" not in r}

    def value(quantity: str, of: str, by: str) -> float:
        measured = found.get((quantity, of, by), {}).get("value")
        return math.nan if measured is None else float(measured)

    said = [
        f"At {false_positive_rate:.0%} false alarms {arm} detects {value('detected', name, arm):.1%} of the {name} images, "
        f"the largest value of the significance map, which needs no network, {value('detected', name, STRONGEST):.1%}, a "
        f"detector that knows place and shape {value('detected', name, 'ideal'):.1%}; their substructure stands "
        f"{value('median_sigma', name, 'ideal'):.0f} standard deviations out of the noise in the median."
        for name in ("sphere", "vort")
    ]
    for low, high in ((0.0, 3.0), (3.0, 5.0), (5.0, 8.0), (8.0, 15.0)):
        here = [r for r in records if r["class"] == "one subhalo" and low <= r.get("sigma_low", -1.0) < high]
        each = [[r for r in here if r["by"] == by] for by in (arm, DETECT, SEARCHES, "ideal")]
        n = sum(r["n"] for r in each[0])
        if n:
            shares = [sum(r["value"] * r["n"] for r in rows) / sum(r["n"] for r in rows) for rows in each]
            said.append(
                f"Of single subhalos {low:g} to {high:g} standard deviations strong {arm} detects {shares[0]:.0%}, "
                f"`d4lens detect` {shares[1]:.0%}, an ideal detector that must search {shares[2]:.0%}, and one that knows the "
                f"place {shares[3]:.0%} ({n} images)."
            )
    half = {by: value("half_mass_on_ring", "one subhalo", by) for by in ("ideal", STRONGEST, arm)}
    if all(math.isfinite(mass) for mass in half.values()):
        said.append(
            f"A single subhalo on the ring is detected every second time at {half[arm]:.1e} Msun, by the significance map "
            f"alone at {half[STRONGEST]:.1e}, by the ideal detector at {half['ideal']:.1e}."
        )
    both = [value("correlation", name, by) for name in ("sphere", "vort") for by in (NETWORK, NO_NETWORK)]
    said.append(
        f"The residual convergence drawn by the network correlates with the true one by {both[0]:.2f} (sphere) and "
        f"{both[2]:.2f} (vort) in the median image; the matched filter's map, which needs no network, by {both[1]:.2f} "
        f"and {both[3]:.2f}."
    )
    errors = {by: value("rod_mass_error", "vort", by) for by in _MASSES}
    said.append(
        f"Rod masses are found within {errors[NETWORK]:.1%} in the median from the network's convergence and within "
        f"{errors[WITH_RADIUS]:.1%} with the Einstein radius beside it; without any network, chi2 and Einstein radius give "
        f"{errors[CHI2]:.1%}, with it {errors[TOGETHER]:.1%}. The Einstein radius alone gives {errors[RADIUS]:.1%} and one "
        f"mass for all {errors[CONSTANT]:.1%}: the prior on rod masses is so narrow that an error below 20 % is by itself "
        "no proof of a measurement."
    )
    return said


def summarise(
    limit: Limit,
    subhalos: tuple[pd.DataFrame, pd.DataFrame],
    places: pd.DataFrame,
    recovered: Recovered,
    params: Parameters,
    without: Blind,
) -> Outcome:
    """Compose the study's outcome from its parts.

    Parameters
    ----------
    limit : Limit
        Of the test split.
    subhalos : tuple of pandas.DataFrame
        As of `subhalo_map`.
    places : pandas.DataFrame
        As of `place_map`.
    recovered : Recovered
        Of the recovery of the substructure.
    params : Parameters
        The study's group.
    without : Blind
        What the searches say of images without substructure.

    Returns
    -------
    Outcome
        The outcome.
    """
    cells, curve = subhalos
    records = [
        *limit.records,
        *curve_records(curve, "one subhalo"),
        *map_records(cells),
        *half_masses(cells),
        *place_records(places),
        *false_alarm_records(without.p_false, params.false_positive_rate),
        *recovered.records,
    ]
    rate = f"{params.false_positive_rate:.0%}"
    return Outcome(
        question="How near do the networks come to what the images allow, and what do they recover of the substructure?",
        answers=sensitivity_answers(records, params.recover, params.false_positive_rate),
        cannot_tell=[
            "The dashed curve is a detector that knows the substructure's place and shape. The one that must search knows "
            "the shape and how masses and places are distributed: only the gap to its curve is a detector's own fault.",
            f"The threshold at {rate} false alarms is taken from the test split's own images without substructure.",
            "The networks were trained on 25 point masses an image or one rod, never on a single subhalo: the maps are "
            "of their reach, not of a network made for the task.",
        ],
        records=records,
        controls={
            "gain_pull": "0: the chi-squared measured in the noisy images is the one expected, in standard deviations",
            "largest_gain": "0: an image without substructure gains nothing",
            OTHER: "what correlation the ring alone gives, with the truth of another image",
        },
    )


_SHARE = charts.number("rate", "share detected", domain=[0, 1])
_DETECTED = {**charts.number("rate", "detected", scheme="viridis", domain=[0, 1]), "legend": {"format": ".0%"}}
del _DETECTED["axis"]
_SIGMA = charts.number("sigma", "significance of the true substructure", type="symlog", constant=1)
_SIGMA["axis"] = {"values": [0, 1, 2, 5, 10, 20, 50, 100], "labelOverlap": True}
_BY_ARM = {
    "x": _SIGMA,
    "color": charts.nominal("arm"),
    "strokeDash": {
        "condition": [
            {"test": "datum.arm == 'ideal'", "value": [5, 4]},
            {"test": f"datum.arm == '{SEARCHES}'", "value": [6, 2, 1, 2]},
        ],
        "value": [1, 0],
    },
}
_TRUE, _FOUND = charts.number("true", "true rod mass [arcsec²]"), charts.number("found", "found [arcsec²]")
_DOTTED = {"strokeDash": [2, 3], "color": "white"}
CHARTS = {
    "limit": charts.panels(
        "images_of",
        [
            {
                "mark": {"type": "area", "opacity": 0.12},
                "encoding": _BY_ARM | {"y": {**_SHARE, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "point": True, "tooltip": {"content": "data"}},
                "encoding": _BY_ARM | {"y": _SHARE},
            },
        ],
        ("sigma", "rate", "low", "high"),
        width=320,
    ),
    "subhalo": charts.panels(
        "arm",
        [
            {
                "mark": {"type": "rect", "tooltip": {"content": "data"}},
                "encoding": {
                    "x": charts.number("radius_low", "radius [theta_E]", nice=False),
                    "x2": {"field": "radius_high"},
                    "y": charts.number("mass_low", "mass [Msun]", log=True, nice=False),
                    "y2": {"field": "mass_high"},
                    "color": _DETECTED,
                },
            },
            charts.lines([1], **_DOTTED),
        ],
        ("radius_low", "radius_high", "mass_low", "mass_high", "rate"),
    ),
    "places": {
        **charts.panels(
            "arm",
            [
                {
                    "mark": {"type": "rect", "tooltip": {"content": "data"}},
                    "encoding": {
                        "x": charts.number("left", "x [arcsec]", nice=False),
                        "x2": {"field": "right"},
                        "y": charts.number("bottom", "y [arcsec]", nice=False),
                        "y2": {"field": "top"},
                        "color": _DETECTED,
                    },
                },
                {
                    "data": {"sequence": {"start": 0, "stop": 6.3, "step": 0.05, "as": "angle"}},
                    "transform": [
                        {"calculate": f"{FIDUCIAL['theta_E']} * cos(datum.angle)", "as": "left"},
                        {"calculate": f"{FIDUCIAL['theta_E']} * sin(datum.angle)", "as": "bottom"},
                    ],
                    "mark": {"type": "line", **_DOTTED},
                    "encoding": {
                        "x": {"field": "left", "type": "quantitative"},
                        "y": {"field": "bottom", "type": "quantitative"},
                        "order": {"field": "angle"},
                    },
                },
            ],
            ("x", "y", "rate"),
        ),
        "transform": [
            {
                "joinaggregate": [
                    {"op": op, "field": "x", "as": name}
                    for op, name in (("min", "low"), ("max", "high"), ("distinct", "n"))
                ]
            },
            {"calculate": "(datum.high - datum.low) / (datum.n - 1) / 2", "as": "half"},
            *(
                {"calculate": f"datum.{axis} {sign} datum.half", "as": name}
                for axis, sign, name in (
                    ("x", "-", "left"),
                    ("x", "+", "right"),
                    ("y", "-", "bottom"),
                    ("y", "+", "top"),
                )
            ),
        ],
    },
    "rod_mass": {
        **charts.panels(
            "estimator",
            [
                {
                    "mark": {"type": "area", "color": "gray", "opacity": 0.2},
                    "encoding": {
                        "x": _TRUE,
                        "y": {**_FOUND, "field": "low"},
                        "y2": {"field": "high"},
                    },
                },
                {
                    "mark": {"type": "circle", "size": 9, "opacity": 0.6},
                    "encoding": {"x": _TRUE, "y": _FOUND},
                },
            ],
            ("true", "found"),
        ),
        "transform": [
            {"calculate": "0.8 * datum.true", "as": "low"},
            {"calculate": "1.2 * datum.true", "as": "high"},
        ],
    },
}


def drawings(
    limit: Limit,
    subhalos: tuple[pd.DataFrame, pd.DataFrame],
    places: pd.DataFrame,
    recovered: Recovered,
    params: Parameters,
) -> list[Drawing]:
    """List the study's drawings from its parts.

    Parameters
    ----------
    limit, subhalos, places, recovered, params
        As for `summarise`.

    Returns
    -------
    list of Drawing
        The drawings.
    """
    cells, curve = subhalos
    rate, mass = params.false_positive_rate, params.places.mass
    both = pd.concat([limit.curve.assign(images_of="test split"), curve.assign(images_of="one subhalo")])
    return [
        Drawing(
            "limit",
            "How near the physical limit",
            f"Share of images with substructure that each arm detects at {rate:.0%} false alarms, against the significance of "
            "the true substructure: lenses with one point mass, and the test split, whose substructure is all but always "
            "far above the noise. Dashed: a matched filter that knows its place and shape; no arm does. Dash-dotted: the best "
            "that knows the shape but must search for the place.",
            both,
            CHARTS["limit"],
        ),
        Drawing(
            "subhalo",
            "One subhalo, by mass and radius",
            "Share of lenses with one point mass that are detected, by its mass and its distance from the centre in "
            "Einstein radii (dotted: the ring).",
            cells,
            CHARTS["subhalo"],
        ),
        Drawing(
            "places",
            "One subhalo, by place",
            f"The same for {mass:.1e} Msun at each place of one lens; the dotted circle is its Einstein ring.",
            places,
            CHARTS["places"],
        ),
        Drawing(
            "rod_mass",
            "Mass of the rod",
            "Rod mass found against the true one on the test split, each estimator scaled on the selection split; grey: "
            "within 20 %. The upper row uses no network: that is what a network has to beat.",
            recovered.masses,
            CHARTS["rod_mass"],
        ),
    ]


def run(params: Parameters, inputs: Inputs) -> tuple[Outcome, list[Drawing]]:
    """Measure the test split, single subhalos and the recovery of the substructure.

    Parameters
    ----------
    params : Parameters
        The study's group.
    inputs : Inputs
        What the study needs.

    Returns
    -------
    outcome : Outcome
        The outcome.
    drawings : list of Drawing
        The drawings.
    """
    folder, fits = inputs.folder("arrays"), inputs.folder("fits")
    predicted, arms = inputs.predictions(), first_networks(inputs.arms(params.arms, every=True))
    seen = fitted_split(folder, fits)
    without = blind(seen, params)
    parts = (
        limit(seen, predicted, params.false_positive_rate),
        subhalo_map(seen, arms, predicted, params, without),
        place_map(seen, arms, predicted, params),
    )
    observation = arrays.load_observation(folder)
    of_split = {}
    for split in ("select", "test"):
        images = load_lenses(folder, fits, split, MAPS_READ, observation, convergence=substructure_convergence)
        of_split[split] = recovered_maps(
            arms[params.recover], images, arrays.load_truth(folder, split), params.recover_images
        )
    recovered = recover(of_split["select"], of_split["test"], observation.pixel_scale, params.bootstrap, params.seed)
    return summarise(*parts, recovered, params, without), drawings(*parts, recovered, params)


STUDY = Study("Sensitivity: which masses are seen", Parameters, ("networks", "predictions", "arrays", "fits"), run)
