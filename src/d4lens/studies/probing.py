"""Linear probes: what can be read off each layer by a straight line, and what a network loses with it.

A probe is a ridge regression on a fixed random projection of the layer to the same number of dimensions everywhere (Alain
& Bengio 1610.01644), its penalty chosen on validation images. Layers are averaged over the eight turns of the image, each
turned back, in every network alike: what an equivariant layer holds in eight channels a plain one may hold in eight views.

Beside each score stands that of a control task (Hewitt & Liang 1909.03368): random targets, one for each image and its whole
orbit, scored on another view of the images they were learnt from, which tells how much a probe of this size memorises.
Selectivity is the difference. Voita & Titov 2003.12298 warn that a probe's score alone cannot tell a representation's content
from the probe's own strength; hence the untrained networks and the raw pixels beside it.

What can be read off a layer need not be used by the network. Erasing it asks: LEACE (Belrose et al. 2306.03819) takes away all
that a straight line can read, by the smallest change that does, and the network goes on from there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from d4lens.classes import CLASSES
from d4lens.lensing import d4
from d4lens.models import scores
from d4lens.params import Count, ParameterGroup, Seed
from d4lens.progress import with_progress
from d4lens.results import metrics
from d4lens.results.outcome import Outcome, record
from d4lens.studies.error_bars import interval_drawing
from d4lens.studies.layers import Layer, blended, capture, layers_of, outputs, run_edited
from d4lens.studies.samples import Samples, simulate_samples
from d4lens.studies.study import Drawing, Inputs, Study

Array = NDArray[np.float64]

TARGETS = ("class", "theta_E", "shear", "mass_sphere", "mass_vort", "position")
PHYSICAL_TARGETS = TARGETS[1:]
ERASED = ("theta_E", "position")
"""Targets that are erased, each where it is read best."""
PIXELS = "pixels"
"""The name of the raw input among a network's layers: its maps, pooled and projected as any layer."""
_PENALTIES = (1e-1, 1e1, 1e3, 1e5)
_POOLED = 5  # cells a side to which a map is pooled
_VIEWS = 2  # of each image's orbit: as it is, and under one other element
_DEPTH = ("unet.lift", "unet.down", "unet.floor", "unet.up", "convergence")  # layers that are equivariant or plain
_LOST = ("kept", "erased", "shuffled")
_COMPONENTS = 24  # principal ones in which a concept is erased: few beside the images that tell it
_CHUNK = 64


class Parameters(ParameterGroup):
    """Group `probing`."""

    arms: Annotated[list[str], Field(min_length=1)]
    twins: dict[str, str]
    images: Annotated[int, Field(ge=30)]
    dimension: Count
    folds: Annotated[int, Field(ge=3)]
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


@dataclass(frozen=True)
class Views:
    """V views of each of B images, view by view.

    Attributes
    ----------
    targets : dict of str to ndarray
        (V B, d) by name of TARGETS, NaN where an image has none.
    elements : ndarray
        (V, B), of D4, under which each is seen.
    """

    targets: dict[str, Array]
    elements: NDArray[np.int64]

    @property
    def image(self) -> NDArray[np.int64]:  # numpydoc ignore=RT01
        """(V B,) index of each view's image."""
        return np.tile(np.arange(self.elements.shape[1]), len(self.elements))


@dataclass(frozen=True)
class Sums:
    """What a score needs of each of B images: the score of any images follows from the sum of their rows.

    Attributes
    ----------
    rows : ndarray
        (B, k). Of classes: hits, views. Of anything else: squared error, views, squared targets, and the targets themselves.
    of_class : bool
        Whether the target is the class.
    """

    rows: Array
    of_class: bool

    @classmethod
    def of(cls, y: Array, predicted: Array, image: NDArray[np.int64], n: int, of_class: bool) -> "Sums":
        """Add up the views of each image.

        Parameters
        ----------
        y : ndarray
            (V, d) targets.
        predicted : ndarray
            (V, d) what was predicted.
        image : ndarray
            (V,) number of each view's image.
        n : int
            Number of images.
        of_class : bool
            Whether the target is the class.

        Returns
        -------
        Sums
            One row an image.
        """
        if of_class:
            columns = [(y.argmax(1) == predicted.argmax(1)).astype(float), np.ones(len(y))]
        else:
            columns = [((y - predicted) ** 2).sum(1), np.ones(len(y)), (y**2).sum(1), *y.T]
        return cls(np.stack([np.bincount(image, column, n) for column in columns], 1), of_class)

    def score(self, weights: Array) -> Array:
        """Compute the accuracy, or R² of all components together.

        Parameters
        ----------
        weights : ndarray
            (R, B) how often each image counts in each of R resamples.

        Returns
        -------
        ndarray
            (R,).
        """
        lost, views, *rest = (weights @ self.rows).T
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.of_class:
                return np.asarray(lost / views)
            return np.asarray(1 - lost / (rest[0] - sum(y**2 for y in rest[1:]) / views))


def views(samples: Samples, seed: int) -> Views:
    """See each image as it is and under one random other element of D4, targets turned with it.

    Parameters
    ----------
    samples : Samples
        B images.
    seed : int
        Of the elements.

    Returns
    -------
    Views
        V views of each.
    """
    generator = np.random.default_rng(seed)
    n = len(samples)
    elements = np.concatenate([[np.zeros(n, np.int64)], generator.integers(1, 8, (_VIEWS - 1, n))])
    tables = [_targets(samples, chosen) for chosen in elements]
    return Views({name: np.concatenate([table[name] for table in tables]) for name in TARGETS}, elements)


def _targets(samples: Samples, elements: NDArray[np.int64]) -> dict[str, Array]:
    """Truth of the images under their elements: masses as log10 of solar masses, lengths in arcsec."""
    images = samples.truth.images
    n, labels = len(samples), samples.labels
    place, sphere, vort = np.full((n, 2), np.nan), np.full((n, 1), np.nan), np.full((n, 1), np.nan)
    is_rod = labels == CLASSES.index("vort")
    place[is_rod] = images[["rod_x", "rod_y"]].to_numpy(np.float64)[is_rod]
    vort[is_rod, 0] = np.log10((images["rod_mass"] * images["halo_mass"]).to_numpy(np.float64)[is_rod])
    largest = samples.truth.subhalos.sort_values("mass").groupby("path").last()
    is_sphere = images["path"].isin(largest.index).to_numpy()
    found = largest.loc[images["path"][is_sphere]]
    place[is_sphere], sphere[is_sphere, 0] = found[["x", "y"]].to_numpy(np.float64), np.log10(found["mass"].to_numpy())
    shear = images[["gamma1", "gamma2"]].to_numpy(np.float64).copy()
    for i, g in enumerate(elements):
        x, y = (float(value) for value in place[i])
        place[i] = d4.transform_points(x, y, int(g))
        gamma1, gamma2 = (float(value) for value in shear[i])
        shear[i] = d4.transform_spin2_values(gamma1, gamma2, int(g))
    return {
        "class": np.eye(len(CLASSES))[labels],
        "theta_E": images[["theta_E"]].to_numpy(np.float64),
        "shear": shear,
        "mass_sphere": sphere,
        "mass_vort": vort,
        "position": place,
    }


@torch.inference_mode()
def features(network: nn.Module, samples: Samples, elements: NDArray[np.int64]) -> dict[str, Array]:
    """Pool the features of every layer, and of the input's maps under PIXELS, over the orbit of each image.

    Maps are pooled by mean and maximum of _POOLED x _POOLED cells, so that both extent and faint peaks remain, under each of the
    eight elements, turned back and averaged: the channels of any network are then maps of scalars that turn with the image.
    Past the last map nothing turns. The deflection is turned as the vector it is, and pooled by mean alone.

    Parameters
    ----------
    network : nn.Module
        The network.
    samples : Samples
        B images.
    elements : ndarray
        (V, B) element of D4 under which each view shows its image.

    Returns
    -------
    dict of str to ndarray
        By layer, (V B, any), view by view.
    """
    layers = [layer for layer in layers_of(network) if layer.part != "input"]
    vectors = {layer.name for layer in layers if layer.key == "alpha"}
    maps = [layer.key for layer in layers_of(network) if layer.part == "input" and layer.kind == "scalar"]
    parts: dict[str, list[Tensor]] = {}
    for start in with_progress(range(0, len(samples), _CHUNK), desc="features"):
        rows = samples.rows(slice(start, start + _CHUNK))
        total: dict[str, Tensor] = {}
        for g in d4.ELEMENTS:
            seen = rows.turned(g)
            found = {PIXELS: torch.stack([seen.need(name) for name in maps], 1)} | capture(network, seen, layers)[1]
            for name, x in found.items():
                back = _turned(_pooled(x, name in vectors), d4.inverse(g), name in vectors) / len(d4.ELEMENTS)
                total[name] = total[name] + back if name in total else back
        for name, x in total.items():
            parts.setdefault(name, []).append(x)
    found = {name: torch.cat(values) for name, values in parts.items()}
    return {
        name: torch.cat([_each_turned(x, view, name in vectors).flatten(1) for view in elements]).double().numpy()
        for name, x in found.items()
    }


def _pooled(x: Tensor, vector: bool) -> Tensor:
    if x.ndim == 2:
        return x
    x = x if x.ndim == 4 else x[:, None]
    side = min(_POOLED, x.shape[-1])
    mean = F.adaptive_avg_pool2d(x, side)
    return mean if vector else torch.cat([mean, F.adaptive_max_pool2d(x, side)], 1)


def _turned(x: Tensor, g: int, vector: bool) -> Tensor:
    if x.ndim == 2:
        return x
    return torch.stack(d4.transform_vector(x[:, 0], x[:, 1], g), 1) if vector else d4.transform(x, g)


def _each_turned(x: Tensor, elements: NDArray[np.int64], vector: bool) -> Tensor:
    new = x.clone()
    for g in d4.ELEMENTS[1:]:
        chosen = torch.from_numpy(elements == g)
        new[chosen] = _turned(x[chosen], g, vector)
    return new


def ridge(x: Array, y: Array, penalties: Sequence[float]) -> list[tuple[Array, Array]]:
    """Fit ridge regressions with an unpenalised intercept.

    Parameters
    ----------
    x : ndarray
        (n, p) features.
    y : ndarray
        (n, d) targets.
    penalties : sequence of float
        One for each regression.

    Returns
    -------
    list of tuple
        Slopes (p, d) and intercept (d,) by penalty.
    """
    mean_x, mean_y = x.mean(0), y.mean(0)
    values, vectors = np.linalg.eigh((x - mean_x).T @ (x - mean_x))
    projected = vectors.T @ ((x - mean_x).T @ (y - mean_y))
    slopes = [vectors @ (projected / (np.maximum(values, 0) + penalty)[:, None]) for penalty in penalties]
    return [(slope, mean_y - mean_x @ slope) for slope in slopes]


def probe(x: Array, seen: Views, dimension: int, folds: int, seed: int) -> dict[str, tuple[Sums, Sums]]:
    """Probe one layer's features for each of TARGETS, and for a control.

    Every image is tested once, by a probe of other images: of the folds one tests, the next chooses the penalty, the rest
    teach. Images are split, never views: an image's whole orbit stands on one side.

    Parameters
    ----------
    x : ndarray
        Features, (V B, any).
    seen : Views
        The images and their targets.
    dimension : int
        Of the random projection, another for each fold.
    folds : int
        Parts into which the images are split, at least 3.
    seed : int
        Of the split and the projections.

    Returns
    -------
    dict of str to tuple
        What scores the probe and what scores the control, by target.
    """
    generator = np.random.default_rng(seed)
    n = int(seen.image.max()) + 1
    fold = (generator.permutation(n) % folds)[seen.image]
    shuffled = generator.permutation(n)
    first = np.arange(len(x)) < n
    kept: dict[str, list[tuple[Any, ...]]] = {name: [] for name in seen.targets}
    for i in range(folds):
        taught = (fold != i) & (fold != (i + 1) % folds)
        scale = x[taught].std(0)
        projection = np.random.default_rng([seed, i, x.shape[1]]).standard_normal((x.shape[1], dimension))
        z = ((x - x[taught].mean(0)) / np.where(scale > 1e-12, scale, np.inf)) @ projection / np.sqrt(x.shape[1])
        for name, y in seen.targets.items():
            there = np.isfinite(y).all(1)
            train, choose, test = (there & role for role in (taught, fold == (i + 1) % folds, fold == i))
            if min(train.sum(), choose.sum(), test.sum()) < 2:
                continue
            fits = ridge(z[train], y[train], _PENALTIES)
            nobody = np.zeros(choose.sum(), np.int64)
            tried = [Sums.of(y[choose], z[choose] @ a + b, nobody, 1, name == "class") for a, b in fits]
            best = int(np.argmax([sums.score(np.ones((1, 1)))[0] for sums in tried]))
            slope, intercept = fits[best]
            # The control: targets shuffled among the images, learnt on one view of an image and tested on another.
            mixed = _shuffled(y, there[:n], shuffled)[seen.image]
            (learnt,) = ridge(z[train & first], mixed[train & first], _PENALTIES[best : best + 1])
            asked = train & ~first
            kept[name].append(
                (
                    (y[test], z[test] @ slope + intercept, seen.image[test]),
                    (mixed[asked], z[asked] @ learnt[0] + learnt[1], seen.image[asked]),
                )
            )
    found = {}
    for name, parts in kept.items():
        if len(parts) == folds:
            joined = [
                [np.concatenate(column) for column in zip(*side, strict=True)] for side in zip(*parts, strict=True)
            ]
            real, control = (Sums.of(y, guess, image, n, name == "class") for y, guess, image in joined)
            found[name] = real, control
    return found


def _shuffled(y: Array, there: NDArray[np.bool_], order: NDArray[np.int64]) -> Array:
    """Targets (B, d) of the first view of each image, shuffled among the images that have one."""
    given = np.full((len(there), y.shape[1]), np.nan)
    given[np.flatnonzero(there)] = y[: len(there)][[i for i in order if there[i]]]
    return given


@dataclass(frozen=True)
class Probed:
    """All probes of one arm's networks, trained or not.

    Attributes
    ----------
    arm : str
        The arm.
    state : str
        "trained" or "untrained".
    rows : list of dict
        The records.
    drawn : dict
        By layer and target, the score and its resamples over trainings and images.
    """

    arm: str
    state: str
    rows: list[dict[str, Any]]
    drawn: dict[tuple[str, str], tuple[float, Array]]


def probed(arm: str, state: str, several: Sequence[Mapping[str, Array]], seen: Views, params: Parameters) -> Probed:
    """Probe every layer of an arm's networks.

    A control scores at least 0, since a probe that does worse than the mean memorises nothing.

    Parameters
    ----------
    arm : str
        The arm.
    state : str
        "trained" or "untrained".
    several : sequence of mapping
        Of each network its features (V B, any) by layer.
    seen : Views
        The images and their targets.
    params : Parameters
        The study's group.

    Returns
    -------
    Probed
        Score, control and selectivity of each layer and target.
    """
    n = seen.elements.shape[1]
    weights = metrics.image_weights(n, params.bootstrap, params.seed)
    rows: list[dict[str, Any]] = []
    drawn = {}
    for layer in with_progress(several[0], len(several[0]), f"probes of {arm}, {state}"):
        runs = [probe(found[layer], seen, params.dimension, params.folds, params.seed) for found in several]
        for target in TARGETS:
            known = int(np.isfinite(seen.targets[target][:n]).all(1).sum())
            about: dict[str, Any] = {"arm": arm, "state": state, "layer": layer, "target": target}
            sides: dict[str, tuple[float, Array]] = {}
            for side, name in enumerate(("score", "control")):
                sums = [run[target][side] for run in runs if target in run]
                if len(sums) < len(runs):
                    sides[name] = float("nan"), np.full(params.bootstrap, np.nan)
                else:
                    sides[name] = _scored(sums, weights, params.seed, least=0.0 if name == "control" else -np.inf)
            drawn[layer, target] = score = sides["score"]
            sides["selectivity"] = score[0] - sides["control"][0], score[1] - sides["control"][1]
            for quantity, (mean, resamples) in sides.items():
                rows.append(record(mean, *metrics.interval(resamples), known, **about, quantity=quantity))
    return Probed(arm, state, rows, drawn)


def _scored(several: Sequence[Sums], weights: Array, seed: int, least: float = -np.inf) -> tuple[float, Array]:
    """Take the mean score over an arm's trainings, each at least `least`, and its resamples over trainings and images."""
    whole, resamples = (
        np.stack([np.maximum(one.score(w), least) for one in several])
        for w in (np.ones((1, weights.shape[1])), weights)
    )
    return float(np.mean(whole)), metrics.over_trainings(resamples, (seed, *range(len(several))))


def earlier(equivariant: Probed, plain: Probed, n: int) -> list[dict[str, Any]]:
    """Measure how much more is to be read off equivariant layers than off the same layers of the plain twin.

    The measure is the area under the score over the depth, from the U-Net's first layer to the convergence that it draws: the mean
    over these layers. What is read earlier adds at more of them. A class scores 0 at chance, anything at least 0.

    Parameters
    ----------
    equivariant, plain : Probed
        An arm and its twin, both trained or both untrained.
    n : int
        Number of images.

    Returns
    -------
    list of dict
        The difference with its interval, paired over trainings and images, of each target that both have and of the
        mean over the physical ones (`physics`).
    """
    layers = [name for name in dict.fromkeys(layer for layer, _ in equivariant.drawn) if name.startswith(_DEPTH)]
    if not layers or not {(name, TARGETS[0]) for name in layers} <= set(plain.drawn):
        return []

    def area(of: Probed, target: str) -> tuple[float, Array]:
        least = 1 / len(CLASSES) if target == "class" else 0.0
        values, drawn = (
            np.mean([np.maximum(of.drawn[name, target][side] - least, 0) / (1 - least) for name in layers], axis=0)
            for side in (0, 1)
        )
        return float(values), np.asarray(drawn)

    found = {}
    for target in TARGETS:
        (a, drawn_a), (b, drawn_b) = area(equivariant, target), area(plain, target)
        if np.isfinite(a - b):
            found[target] = a - b, drawn_a - drawn_b
    several = [found[target] for target in PHYSICAL_TARGETS if target in found]
    if several:
        found["physics"] = float(np.mean([d for d, _ in several])), np.mean([drawn for _, drawn in several], axis=0)
    about: dict[str, Any] = {
        "arm": equivariant.arm,
        "twin": plain.arm,
        "state": equivariant.state,
        "layer": "unet",
    }
    return [
        record(value, *metrics.interval(drawn), n, **about, target=target, quantity="area_difference")
        for target, (value, drawn) in found.items()
    ]


def leace(x: Array, z: Array) -> Array:
    """Find the projection that takes from x all that is linear in z, changing x least (Belrose et al. 2306.03819, theorem 4.3).

    Parameters
    ----------
    x : ndarray
        (n, p) features.
    z : ndarray
        (n, d) concept.

    Returns
    -------
    ndarray
        P (p, p): x - (x - mean(x)) P.T has no covariance with z, and no linear probe of it does better than a constant.
    """
    x, z = x - x.mean(0), (z - z.mean(0)) / z.std(0)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    there = values > 1e-10 * values.max()
    values, vectors = values[there], vectors[:, there]
    root = np.sqrt(values)
    u, size, _ = np.linalg.svd((vectors / root).T @ (x.T @ z / len(x)), full_matrices=False)  # whitened
    u = u[:, size > 1e-8]  # of a correlation
    return np.asarray((vectors * root) @ u @ u.T @ (vectors / root).T)


@torch.inference_mode()
def erased(network: nn.Module, layer: Layer, samples: Samples, concept: Array, seed: int) -> "Erasure":
    """Take a concept from a layer and let the network go on.

    A map is edited by the means of its cells, in their first principal components. One half of the images tells what to take
    from the other.

    Parameters
    ----------
    network : nn.Module
        The network.
    layer : Layer
        Where.
    samples : Samples
        B images.
    concept : ndarray
        (B, d); images with NaN teach nothing and are edited all the same.
    seed : int
        Of the halves, and of the order of the control.

    Returns
    -------
    Erasure
    """
    generator = np.random.default_rng(seed)
    n, chunks = len(samples), [slice(i, i + _CHUNK) for i in range(0, len(samples), _CHUNK)]
    run = [capture(network, samples.rows(rows), [layer]) for rows in chunks]
    cells = torch.cat([_cells(found[layer.name]) for _, found in run])
    flat = cells.flatten(1).numpy()
    half, order = generator.permutation(n) % 2, generator.permutation(n)
    there = np.isfinite(concept).all(1)
    change = {name: np.zeros_like(flat) for name in ("erased", "shuffled")}
    for side in (0, 1):
        taught, edited = there & (half != side), half == side
        mean = flat[taught].mean(0)
        axes = np.linalg.svd(flat[taught] - mean, full_matrices=False)[2][:_COMPONENTS].T
        y = (flat - mean) @ axes
        for name, z in (("erased", concept), ("shuffled", _shuffled(concept, there, order))):
            change[name][edited] = -(y[edited] @ leace(y[taught], z[taught]).T) @ axes.T
    logits: dict[str, list[Tensor]] = {"kept": [first for first, _ in run], **{name: [] for name in change}}
    for rows, (_, found) in zip(chunks, run, strict=True):
        batch, x = samples.rows(rows), found[layer.name]
        fixed = {key: value for key, value in outputs(network, batch, [layer]).items() if key in layer.untouched}
        for name, by_cell in change.items():
            new = x + _spread(torch.from_numpy(by_cell[rows]).reshape(-1, *cells.shape[1:]), x).to(x.dtype)
            logits[name].append(run_edited(network, batch, {layer: blended(new)}, fixed))
    probabilities = {name: scores.softmax(torch.cat(parts).numpy()) for name, parts in logits.items()}
    return Erasure(probabilities, {"kept": flat} | {name: flat + by_cell for name, by_cell in change.items()})


@dataclass(frozen=True)
class Erasure:
    """What a network makes of B images with a concept (`erased`), that of other images (`shuffled`) or nothing (`kept`) taken.

    Attributes
    ----------
    probabilities : dict of str to ndarray
        (B, C).
    cells : dict of str to ndarray
        (B, p), means of the layer's cells.
    """

    probabilities: dict[str, Array]
    cells: dict[str, Array]


def _cell_of(n: int) -> Tensor:
    """Assign n pixels to cells without overlap: (cells, n) of 0 and 1."""
    cells = min(_POOLED, n)
    return (torch.arange(cells)[:, None] == torch.arange(n) * cells // n).double()


def _cells(x: Tensor) -> Tensor:
    """Means of the cells of maps (..., n, n), or a vector as it is."""
    if x.ndim == 2:
        return x.double()
    of = _cell_of(x.shape[-1])
    of = of / of.sum(1, keepdim=True)
    return of @ x.double() @ of.T


def _spread(cells: Tensor, like: Tensor) -> Tensor:
    """Constant in each cell: `_cells` of it is `cells`."""
    if like.ndim == 2:
        return cells
    of = _cell_of(like.shape[-1])
    return of.T @ cells @ of


def erasure_records(
    arm: str,
    layer: str,
    target: str,
    several: Sequence[Erasure],
    concept: Array,
    labels: NDArray[np.int64],
    params: Parameters,
) -> list[dict[str, Any]]:
    """Measure what an arm loses with a target, over its trainings and images.

    That is macro AUC lost with the target, with that of other images, and beyond it. How well the target is read off the layer's
    cells before and after tells whether it was taken.

    Parameters
    ----------
    arm : str
        The arm.
    layer : str
        Name of the layer.
    target : str
        One of ERASED.
    several : sequence of Erasure
        One of each training.
    concept : ndarray
        (B, d) the target, NaN where an image has none.
    labels : ndarray
        (B,) classes, indices into CLASSES.
    params : Parameters
        The study's group.

    Returns
    -------
    list of dict
        The records.
    """
    predictions = {name: {i: found.probabilities[name] for i, found in enumerate(several)} for name in _LOST}
    pairs = [("kept", "erased"), ("kept", "shuffled"), ("shuffled", "erased")]
    found = metrics.compare_all(labels, predictions, pairs, "auc_macro", params.bootstrap, params.seed)
    about: dict[str, Any] = {"arm": arm, "state": "trained", "layer": layer, "target": target}
    names = ("auc_lost", "auc_lost_shuffled", "auc_lost_beyond_shuffled")
    rows = [
        record(d.difference, d.low, d.high, len(labels), **about, quantity=name)
        for name, d in zip(names, found.values(), strict=True)
    ]
    seen = Views({target: concept}, np.zeros((1, len(labels)), np.int64))
    weights = metrics.image_weights(len(labels), params.bootstrap, params.seed)
    for state in ("kept", "erased"):
        read = [probe(one.cells[state], seen, params.dimension, params.folds, params.seed) for one in several]
        if all(target in one for one in read):
            value, drawn = _scored([one[target][0] for one in read], weights, params.seed)
            ends = metrics.interval(drawn)
            known = int(np.isfinite(concept).all(1).sum())
            rows.append(record(value, *ends, known, **about, quantity=f"score_{state}"))
    return rows


def summarise(rows: Sequence[Mapping[str, Any]], dimension: int, twins: Mapping[str, str]) -> Outcome:
    """Compose the study's outcome.

    Parameters
    ----------
    rows : sequence of mapping
        The records of all networks.
    dimension : int
        Of the random projection.
    twins : mapping of str to str
        By arm, the one with the plain U-Net.

    Returns
    -------
    Outcome
        The outcome.
    """
    trained = list(dict.fromkeys(r["arm"] for r in rows if r["state"] == "trained"))
    answers = [_best(rows, target, trained) for target in TARGETS]
    answers += _earlier(rows, twins)
    found = {(r["arm"], r["target"], r["quantity"]): r for r in rows if r["quantity"].startswith("auc_lost")}
    for arm, target in dict.fromkeys(key[:2] for key in found):
        lost, other, beyond = (
            found[arm, target, name] for name in ("auc_lost", "auc_lost_shuffled", "auc_lost_beyond_shuffled")
        )
        before, after = (
            next(
                (_in_words(r) for r in rows if r["quantity"] == name and (r["arm"], r["target"]) == (arm, target)),
                "unknown",
            )
            for name in ("score_kept", "score_erased")
        )
        verdict = "is used there" if beyond["ci_low"] > 0 else "is not shown to be used there"
        answers.append(
            f"{arm}: erased at {lost['layer']} (R² of its cells {before} before, {after} after), {target} takes {_in_words(lost, 3)} of macro "
            f"AUC with it, that of other images {_in_words(other, 3)}, the difference is {_in_words(beyond, 3)}: it {verdict}."
        )
    return Outcome(
        question="Which physical quantities can be read off each layer by a straight line, earlier where it is equivariant, and are "
        "they used?",
        answers=answers,
        cannot_tell=[
            "What can be read off a layer need not be used by the network; what is erased is used by a straight line at most.",
            f"A quantity that needs more than a straight line, or more than {dimension} random directions, is missed.",
            "Averaged over the orbit, a layer past the last map is the same for all views: neither position nor shear can be read off it.",
            "An erased activation is one that no image may produce; the concept of other images, erased, shows how much that alone does.",
            "A control score well above chance means that the probe memorises; compare selectivity, and only at equal dimension.",
            "With one training seed the intervals are over images alone.",
        ],
        records=list(rows),
        controls={
            "control": "targets shuffled among the images, learnt on one view and tested on another: what the probe memorises",
            "untrained": "the same network before training; of the area_difference, what the architecture alone gives",
            PIXELS: "the maps the network reads, pooled and projected as any layer",
            "class": "accuracy; a third is chance",
            "auc_lost_shuffled": "macro AUC lost where the concept of other images is erased: what the edit alone does",
        },
    )  # fmt: skip


def _in_words(r: Mapping[str, Any], digits: int = 2) -> str:
    return f"{r['value']:.{digits}f} [{r['ci_low']:.{digits}f}, {r['ci_high']:.{digits}f}]"


def _earlier(rows: Sequence[Mapping[str, Any]], twins: Mapping[str, str]) -> list[str]:
    """Say of each arm with a trained twin whether equivariant layers hold physics earlier."""
    found = {(r["arm"], r["state"], r["target"]): r for r in rows if r["quantity"] == "area_difference"}
    said = []
    for arm in dict.fromkeys(arm for arm, _, _ in found):
        own, begun = found.get((arm, "trained", "physics")), found.get((arm, "untrained", "physics"))
        if own is None or own["value"] is None:
            continue
        verdict = (
            "yes"
            if own["ci_low"] > 0
            else "no, the plain twin is ahead"
            if own["ci_high"] < 0
            else "no difference is shown"
        )
        text = f"Do the equivariant layers of {arm} hold physics earlier than those of {own['twin']}? {verdict.capitalize()}: from the "
        text += f"U-Net's first layer to the convergence the mean score of {', '.join(PHYSICAL_TARGETS)} differs by {_in_words(own, 3)}"
        text += f", before training by {_in_words(begun, 3)}" if begun and begun["value"] is not None else ""
        by_class = found.get((arm, "trained", "class"))
        text += f"; that of the class by {_in_words(by_class, 3)}" if by_class else ""
        said.append(text + ".")
    return said or [
        "Whether equivariant layers hold physical quantities earlier than plain ones cannot be told here: no arm is trained in this "
        f"profile beside its twin with a plain U-Net ({', '.join(f'{a} and {b}' for a, b in twins.items())})."
    ]


def _scores(rows: Sequence[Mapping[str, Any]], arm: str, target: str, state: str) -> list[Mapping[str, Any]]:
    wanted = {"arm": arm, "target": target, "state": state, "quantity": "score"}
    return [r for r in rows if all(r[key] == value for key, value in wanted.items()) and r["value"] is not None]


def _best(rows: Sequence[Mapping[str, Any]], target: str, trained: Sequence[str]) -> str:
    """Say in a sentence the best layer for a target of each trained network, the untrained one's best, and the pixels."""
    parts = []
    for arm in trained:
        found = {state: _scores(rows, arm, target, state) for state in ("trained", "untrained")}
        inner = {state: [r for r in several if r["layer"] != PIXELS] for state, several in found.items()}
        if not inner["trained"]:
            continue
        best = max(inner["trained"], key=lambda r: r["value"])
        text = f"{arm} {_in_words(best)} at {best['layer']}"
        if inner["untrained"]:
            text += f" (untrained at most {max(r['value'] for r in inner['untrained']):.2f}"
            pixels = [r["value"] for r in found["trained"] if r["layer"] == PIXELS]
            text += f", pixels {pixels[0]:.2f})" if pixels else ")"
        parts.append(text)
    measure = "accuracy" if target == "class" else "R²"
    return f"{target} ({measure}): {'; '.join(parts) or 'too few images to tell'}."


def run(params: Parameters, inputs: Inputs) -> tuple[Outcome, list[Drawing]]:
    """Probe every training of every arm and as many untrained networks, hold twins against each other, and erase.

    Parameters
    ----------
    params : Parameters
        The study's group.
    inputs : Inputs
        Its networks.

    Returns
    -------
    outcome : Outcome
        The outcome.
    drawings : list of Drawing
        Selectivity of the layers, and scores over the depth.
    """
    arms = inputs.arms(params.arms)
    lenses = simulate_samples(params.images, params.seed, arms[0].observation)
    seen = views(lenses, params.seed)
    found: dict[tuple[str, str], Probed] = {}
    rows: list[dict[str, Any]] = []
    for arm in arms:
        begun = [arm.untrained(params.seed + i) for i in range(len(arm.networks))]
        for state, networks in (("trained", arm.networks), ("untrained", begun)):
            read = [features(network, lenses, seen.elements) for network in networks]
            found[arm.name, state] = probed(arm.name, state, read, seen, params)
            rows += found[arm.name, state].rows
    for name, twin in params.twins.items():
        for state in ("trained", "untrained"):
            if (name, state) in found and (twin, state) in found:
                rows += earlier(found[name, state], found[twin, state], len(lenses))
    for arm in arms:
        by_layer = {layer.name: layer for layer in layers_of(arm.networks[0]) if layer.part not in ("input", "logits")}
        drawn = found[arm.name, "trained"].drawn
        for target in ERASED:
            best = max(by_layer, key=lambda name: np.nan_to_num(drawn[name, target][0], nan=-np.inf))
            if drawn[best, target][0] > 0:  # what cannot be read cannot be erased
                layer, concept = by_layer[best], seen.targets[target][: len(lenses)]
                of = with_progress(arm.networks, desc=f"{target} erased")
                several = [erased(network, layer, lenses, concept, params.seed) for network in of]
                rows += erasure_records(arm.name, layer.name, target, several, concept, lenses.labels, params)
    pairs = {name for pair in params.twins.items() if set(pair) <= {arm.name for arm in arms} for name in pair}
    depth = [r for r in rows if r["quantity"] == "score" and r["arm"] in pairs and r["layer"].startswith(_DEPTH)]
    drawings = [
        interval_drawing(
            "selectivity",
            "What a linear probe reads off each layer",
            "Selectivity (score less control) of the probes on the trained networks, with 95 % intervals over trainings and images; "
            "what lies beyond ±1, as of a probe that predicts worse than a constant, is not drawn.",
            [r for r in rows if r["quantity"] == "selectivity" and r["state"] == "trained"],
            ("arm", "layer", "target"),
            "selectivity",
            marks=(0, 1),
            domain=(-1, 1),
        ),
        interval_drawing(
            "depth",
            "Do equivariant layers hold physics earlier?",
            "Score of the probes on each layer of the U-Net, from the first to the convergence that it draws, of an equivariant network "
            "and its twin with a plain U-Net, both averaged over the eight turns of the image; 95 % intervals over trainings and images.",
            [r for r in depth if r["state"] == "trained"],
            ("target", "layer", "arm"),
            "accuracy, or R²",
            marks=(0, 1),
            domain=(-0.5, 1),
        ),
    ]
    return summarise(rows, params.dimension, params.twins), drawings


STUDY = Study("Interpretability: probing", Parameters, ("networks",), run)
