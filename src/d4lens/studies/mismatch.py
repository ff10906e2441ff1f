"""Images the networks were not made for: other lenses, sources and telescopes, and what knowing of it mends.

Each case changes one thing about the preset the networks were trained on. Its images are fitted three times: with the
constants that the training preset takes for granted (`default`), with the right ones (`known`), and with those in
doubt set free (`freed`). The networks are never retrained.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from d4lens import flags
from d4lens.classes import CLASSES
from d4lens.data import arrays
from d4lens.macrofit import (
    FIT_COLUMNS,
    FitResult,
    SmoothLensModel,
    fit_smooth_lens,
    preset_model,
    pseudo_counts,
    significance_maps,
)
from d4lens.models import scores
from d4lens.models.batch import LensBatch
from d4lens.observation import Observation, bin_pixels
from d4lens.params import ParameterGroup, Seed
from d4lens.progress import Meter
from d4lens.results import charts, metrics
from d4lens.results.outcome import Outcome, record
from d4lens.simulator import Truth, draw, preset, render
from d4lens.simulator.draws import noise_stream
from d4lens.simulator.noise import poisson_quantile
from d4lens.studies import detectors
from d4lens.studies.networks import first_networks
from d4lens.studies.physical_limit import mean_counts
from d4lens.studies.study import Drawing, Inputs, Study

KNOWLEDGE = ("default", "known", "freed")
_LABELS = ("case", "constants", "arm", "quantity")
_GOOD, _ALARMS = 0.95, 0.1  # macro AUC at least, and share of `no` images called something else at most
_STARTS = 2  # with wrong constants no start leads to a fit that would end the search for a better one
_LENS_ANGLE = 0.5  # radians: no axis of the images', whose shear and source lie along x
_LENS, _SOURCE, _PSF = ("lens_e1", "lens_e2"), ("n", "R_e", "amplitude"), ("psf_sigma",)
# Of the source that a clump adds: Einstein-radius arcs of it are a third as wide as the main component's.
_CLUMP = {"sersic_R_e": 0.15, "sersic_amplitude": 200.0, "sersic_n": 1.0, "source_q": 1.0}
_AUC = charts.intervals("arm", "case", "constants", "macro AUC", marks=(0.5, 1), ends=("low", "high"))
_CLUMP_OFFSET = 0.3  # arcsec from the main component's centre


class Parameters(ParameterGroup):
    """Group `mismatch`."""

    arms: list[str]
    answers_for: str
    images: Annotated[int, Field(ge=3)]
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


@dataclass(frozen=True)
class Case:
    """A set of images and what a user who knows of the change would tell the fit.

    Attributes
    ----------
    name, words: for tables, and for sentences.
    overrides: of the simulator's preset.
    known: the right values of the smooth lens's constants; None where it has no parameter for the change.
    freed: what is fitted beside the training's free parameters by who doubts the right group of constants.
    simulator: the preset.
    clump: whether a second, smaller component is added to the source.
    """

    name: str
    words: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, float] | None = None
    freed: tuple[str, ...] = _SOURCE
    simulator: str = "deeplense"
    clump: bool = False


def cases(psf_sigma: float) -> tuple[Case, ...]:
    """List all cases.

    Parameters
    ----------
    psf_sigma : float
        What the training took the PSF to be, arcsec.

    Returns
    -------
    tuple of Case
        The cases, the training's own kind first.
    """
    found = [Case("deeplense", "the training's own kind", freed=_LENS + _SOURCE)]
    turned = {"gamma_phi": [0.0, math.pi], "source_phi": [0.0, math.pi]}
    found.append(Case("random_orientation", "shear and source at every angle", turned))
    for q in (0.9, 0.75, 0.6):
        e = (1 - q) / (1 + q)
        known = {"lens_e1": e * math.cos(2 * _LENS_ANGLE), "lens_e2": e * math.sin(2 * _LENS_ANGLE)}
        shape = {"lens_q": q, "lens_phi": _LENS_ANGLE}
        found.append(Case(f"lens_q_{q:g}", f"an elliptical lens of axis ratio {q:g}", shape, known, _LENS))
    for n in (0.5, 1.0, 2.5, 4.0):
        found.append(Case(f"sersic_n_{n:g}", f"a source of Sérsic index {n:g}", {"sersic_n": n}, {"n": n}))
    for size in (0.35, 0.7):
        words = f"a source of {size:g} arcsec effective radius"
        found.append(Case(f"source_R_e_{size:g}", words, {"sersic_R_e": size}, {"R_e": size}))
    for factor in (0.9, 1.1):
        sigma = factor * psf_sigma
        words = f"a PSF {abs(factor - 1):.0%} {'wider' if factor > 1 else 'narrower'} than thought"
        found.append(Case(f"psf_{factor:g}", words, {"psf_sigma": sigma}, {"psf_sigma": sigma}, _PSF))
    found.append(Case("clumpy_source", "a clumpy source of two components", clump=True))
    found.append(Case("model-i", "DeepLenseSim's Model I", {}, {}, (*_LENS, *_SOURCE, "sky"), simulator="model-i"))
    return tuple(found)


def simulated(case: Case, seed: int, n_images: int, native: Observation) -> tuple[Tensor, NDArray[np.int64]]:
    """Simulate the images of a case. An image depends on the case, the seed and its index alone.

    Parameters
    ----------
    case : Case
        What is changed.
    seed : int
        Of the lenses.
    n_images : int
        How many, the three classes in turn.
    native : Observation
        The training's grid, PSF and sky; Model I brings its own PSF and background.

    Returns
    -------
    Tensor
        Native images (n, N, N) float64 in counts, noise included.
    ndarray
        Labels, (n,).
    """
    grid = {"n_pixels": native.n_pixels, "pixel_scale": native.pixel_scale}
    if case.simulator == "deeplense":
        grid |= {"psf_sigma": native.psf_sigma, "sky": native.sky}
    made_by = preset(case.simulator, grid | dict(case.overrides))
    truth = draw(made_by, seed, range(n_images), split="val")
    labels = np.array([CLASSES.index(name) for name in truth.images["class"]], np.int64)
    if not case.clump:
        return render(truth, made_by), labels
    expected = mean_counts(truth, made_by, 1) + mean_counts(_clumps(truth, seed), made_by, 1) - made_by.observation.sky
    keys = zip(*(truth.images[name].tolist() for name in ("preset", "seed", "split", "index")))
    noise = np.stack([noise_stream(*key).random(expected.shape[1:]) for key in keys])
    return torch.from_numpy(poisson_quantile(expected.numpy(), noise)), labels


def _clumps(truth: Truth, seed: int) -> Truth:
    """Put the same lenses before the second component of the source alone."""
    angle = 2 * math.pi * np.random.default_rng([seed, 2]).random(len(truth))
    images = truth.images.assign(
        source_x=truth.images["source_x"] + _CLUMP_OFFSET * np.cos(angle),
        source_y=truth.images["source_y"] + _CLUMP_OFFSET * np.sin(angle),
        **_CLUMP,
    )
    return Truth(images, truth.subhalos)


@dataclass(frozen=True)
class CaseFit:
    """One case under one choice of constants: what the networks are given, and how well the smooth lens fits."""

    constants: str
    batch: LensBatch
    result: FitResult


def fits(case: Case, native_counts: Tensor, native: Observation, binning: int) -> Iterator[CaseFit]:
    """Fit images under each of KNOWLEDGE that the case has, one at a time to keep memory flat.

    Parameters
    ----------
    case : Case
        What the images are.
    native_counts : Tensor
        (n, N, N) photons per native pixel.
    native : Observation
        The native pixels.
    binning : int
        Native pixels a side of one that is fitted.

    Yields
    ------
    CaseFit
        The fit under one of KNOWLEDGE.
    """
    standard = preset_model("deeplense", native, binning)
    if case.simulator == "deeplense":
        counts = bin_pixels(native_counts.double(), binning).float()
        models: dict[str, Callable[[], SmoothLensModel]] = {"default": lambda: standard}
        if case.known is not None:
            models["known"] = lambda: standard.replaced(constants={**standard.constants, **(case.known or {})})
        models["freed"] = lambda: preset_model("deeplense", native, binning, free=(*FIT_COLUMNS, *case.freed))
        for constants, make in models.items():
            yield _fitted(constants, counts, make())
        return
    # As a user meets them: scaled to [0, 1], the photon scale lost. `predict` raises them until the background is Poisson's.
    raised = pseudo_counts(_normalised(bin_pixels(native_counts.double(), binning)))
    yield _fitted("default", raised, preset_model("deeplense", native, binning, units="normalised"))
    source = preset(case.simulator).observation
    its_own = replace(native, psf_sigma=source.psf_sigma)
    yield _fitted("known", raised, preset_model(case.simulator, its_own, binning, units="normalised"))
    freed = preset_model("deeplense", native, binning, free=(*FIT_COLUMNS, *case.freed), units="normalised")
    yield _fitted("freed", raised, freed)


def _fitted(constants: str, counts: Tensor, lens: SmoothLensModel) -> CaseFit:
    result = fit_smooth_lens(counts, lens, max_starts=_STARTS)
    return CaseFit(
        constants, LensBatch.of_fit(counts, result, significance_maps(counts, result.parameters, lens)), result
    )


def _normalised(images: Tensor) -> Tensor:
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    return (images - low) / (high - low)


def measure_case(
    fitted: CaseFit,
    labels: NDArray[np.int64],
    arms: Mapping[str, nn.Module],
    largest: float,
    n_resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Measure one case and choice of constants.

    Parameters
    ----------
    fitted : CaseFit
        The fit of the images.
    labels : ndarray
        Their classes, (n,).
    arms : mapping of str to nn.Module
        Networks by arm.
    largest : float
        chi2 beyond which `predict` flags an image as unlike the training's.
    n_resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    list of dict
        Keys constants, arm, quantity, value, low, high, n. Of the fit (arm ""): `chi2`, the mean a pixel; `chi2_no`, of the
        images without substructure; `unlike_training`, the share that is flagged. Of each arm: `auc_macro`, `accuracy`, and
        `false_alarms`, the share of `no` images that it calls something else; `flagged_if_wrong`, the share of its wrong
        answers that carry the flag.
    """
    chi2 = fitted.result.chi2.numpy()
    no = labels == CLASSES.index("no")
    flagged = flags.unlike_training(chi2, fitted.result.converged.numpy(), largest)
    rows = []

    def add(arm: str, quantity: str, value: float, low: float, high: float, n: int) -> None:
        row = {"constants": fitted.constants, "arm": arm, "quantity": quantity}
        rows.append({**row, "value": value, "low": low, "high": high, "n": n})

    def share(arm: str, quantity: str, which: NDArray[np.bool_]) -> None:
        n, hits = len(which), int(which.sum())
        add(arm, quantity, hits / n if n else math.nan, *metrics.wilson(hits, n), n)

    for quantity, values in (("chi2", chi2), ("chi2_no", chi2[no])):
        spread = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        mean = float(values.mean())
        add("", quantity, mean, mean - spread, mean + spread, len(values))
    share("", "unlike_training", flagged)
    for arm, network in arms.items():
        probabilities = scores.softmax(detectors.logits(network, fitted.batch))
        scored = metrics.with_intervals(labels, probabilities, n_resamples, seed)
        for quantity in ("auc_macro", "accuracy"):
            value = scored[quantity]
            add(arm, quantity, value["value"], value["low"], value["high"], len(labels))
        answer = probabilities.argmax(1)
        share(arm, "false_alarms", answer[no] != CLASSES.index("no"))
        share(arm, "flagged_if_wrong", flagged[answer != labels])
    return rows


def mismatch_answers(rows: Sequence[Mapping[str, Any]], words: Mapping[str, str], arm: str) -> list[str]:
    """Say in sentences with figures what a user should do.

    Parameters
    ----------
    rows : sequence of mapping
        Of `measure_case`, each with its "case".
    words : mapping
        What each case is, by its name; the training's own stands first.
    arm : str
        The network that the sentences speak of.

    Returns
    -------
    list of str
    """
    found = {(row["case"], row["constants"], row["arm"], row["quantity"]): float(row["value"]) for row in rows}
    own, *others = words

    def auc(case: str, constants: str) -> float:
        return found.get((case, constants, arm, "auc_macro"), math.nan)

    def alarms(case: str, constants: str) -> float:
        return found.get((case, constants, arm, "false_alarms"), math.nan)

    def holds(case: str, constants: str) -> bool:
        return auc(case, constants) >= _GOOD and alarms(case, constants) <= _ALARMS

    def named(which: Sequence[str], constants: str) -> str:
        figures = (f"{words[c]} ({auc(c, constants):.3f}, {alarms(c, constants):.0%})" for c in which)
        return "; ".join(figures) or "none"

    def best(which: Sequence[str]) -> str:
        figures = []
        for case in which:
            tried = [c for c in ("default", "known", "freed") if (case, c, arm, "auc_macro") in found]
            constants = max(tried, key=lambda c: auc(case, c))
            figures.append(f"{words[case]} ({constants} {auc(case, constants):.3f}, {alarms(case, constants):.0%})")
        return "; ".join(figures) or "none"

    bad = [case for case in others if not holds(case, "default")]
    good = [case for case in others if case not in bad]
    # Two ways to fail: smooth lenses called structured, or one substructure taken for another.
    alarming = [case for case in bad if not alarms(case, "default") <= _ALARMS]
    blind = [case for case in bad if case not in alarming]
    known = [case for case in bad if holds(case, "known")]
    freed = [case for case in bad if holds(case, "freed")]
    lost = [case for case in bad if case not in known and case not in freed]
    caught = [case for case in bad if found[case, "default", "", "unlike_training"] >= 0.5]
    missed = [words[case] for case in bad if case not in caught]
    return [
        f"On images of {words[own]}, {arm} reaches a macro AUC of {auc(own, 'default'):.3f}. With the lens's "
        f"ellipticity and the source's profile free in the fit it reaches {auc(own, 'freed'):.3f}.",
        "In brackets: the macro AUC, and the share of images without substructure that are labelled as structured. With the "
        f"constants of training it works (at least {_GOOD} and at most {_ALARMS:.0%}) for: {named(good, 'default')}.",
        f"It labels lenses without substructure as structured for: {named(alarming, 'default')}.",
        f"It gives few false alarms, but does not tell the classes apart, for: {named(blind, 'default')}.",
        f"With the right constants it works again for: {named(known, 'known')}.",
        f"With the constants free in the fit it works again for: {named(freed, 'freed')}.",
        f"Neither helps for: {best(lost)}, the best of the three. Such images need a network that is trained on images like "
        "them.",
        f"The flags alone do not protect. Of the {len(bad)} cases that fail they mark at least half of the images in "
        f"{len(caught)}, but not in {'; '.join(missed) or 'none'}. A chi2 is flagged only where it is larger than with the "
        "strongest substructure of training.",
        "What to do: fit a hundred of your images first (`d4lens fit`). The mean chi2 a pixel of those that should be smooth "
        "must lie within 0.01 of 1 (that of one image scatters by 0.02). If it does not, give the right constants, or free "
        "those that are unknown. If it stays high, do not use the labels; train on a preset of your own.",
    ]


def measure_all(
    arms: Mapping[str, nn.Module],
    native: Observation,
    binning: int,
    largest: float,
    params: Parameters,
) -> list[dict[str, Any]]:
    """Take the rows of `measure_case` for every case, each with its "case".

    Parameters
    ----------
    arms : mapping of str to nn.Module
        Networks by arm.
    native : Observation
        The training's before binning.
    binning : int
        Native pixels a side of a pixel.
    largest : float
        chi2 beyond which an image is unlike the training's.
    params : Parameters
        Images, resamples and seed.

    Returns
    -------
    list of dict
    """
    rows = []
    every = cases(native.psf_sigma)
    with Meter(len(every), "mismatched sets") as meter:
        for case in every:
            counts, labels = simulated(case, params.seed, params.images, native)
            for fitted in fits(case, counts, native, binning):
                measured = measure_case(fitted, labels, arms, largest, params.bootstrap, params.seed)
                rows += [{"case": case.name, **row} for row in measured]
            meter.update()
    return rows


def summarise(rows: Sequence[Mapping[str, Any]], native: Observation, arm: str) -> Outcome:
    """Compose the study's outcome.

    Parameters
    ----------
    rows : sequence of mapping
        Of `measure_all`.
    native : Observation
        The native pixels.
    arm : str
        The network that the answers speak of.

    Returns
    -------
    Outcome
        The outcome.
    """
    words = {case.name: case.words for case in cases(native.psf_sigma)}
    records = [
        record(row["value"], row["low"], row["high"], row["n"]) | {name: row[name] for name in _LABELS} for row in rows
    ]
    return Outcome(
        question="What do networks trained on one kind of lens say of others, and what should a user do?",
        answers=mismatch_answers(rows, words, arm),
        cannot_tell=[
            "Each set changes one thing; real images differ in several at once.",
            "The network is not retrained: one trained on the other kind may do as well there as this one does here.",
            "`freed` sets free the group of constants that is in doubt, which a user has to guess; the wrong group "
            "mends nothing.",
            "A clumpy source has no `known`: the smooth lens has one component only.",
        ],
        records=records,
        controls={"deeplense": "the training's own kind: the AUC of the results table, within its interval"},
    )


def run(params: Parameters, inputs: Inputs) -> tuple[Outcome, list[Drawing]]:
    """Simulate, fit and classify every case, on the pixels of the profile's images.

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
    facts = arrays.load_facts(inputs.folder("arrays"))
    native = Observation.from_dict(facts["native"])
    arms = first_networks(inputs.arms(params.arms, every=True))
    largest = flags.largest_chi2(pd.read_csv(inputs.folder("fits") / "train_fit.csv")["chi2"])
    rows = measure_all(arms, native, facts["bin"], largest, params)
    table = pd.DataFrame(rows)[[*_LABELS, "value", "low", "high", "n"]].round(6)
    drawn = table[table["quantity"] == "auc_macro"]
    auc = Drawing(
        "auc",
        "Networks out of their element",
        "Macro AUC (TTA off) on images unlike the training's, with the training's constants in the fit (default), the right "
        "ones (known), and those in doubt fitted (freed).",
        drawn,
        _AUC,
    )
    return summarise(rows, native, params.answers_for), [auc]


STUDY = Study("Mismatch: images unlike the training set's", Parameters, ("networks", "arrays", "fits"), run)
