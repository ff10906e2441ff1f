"""Attribution: whether decisions come from where the substructure is.

The maps of `d4lens.models.integrated_gradients`, scored by the pointing game (Zhang et al. 1608.00507): does the map's highest
point lie within a tolerance of the true substructure? And held against patching: are the cells of the image to which much is
attributed those that move the decision when they alone are put into the smooth lens's maps?
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import rankdata
from torch import Tensor, nn

from d4lens import lensing
from d4lens.models.batch import LensBatch
from d4lens.models.integrated_gradients import attribute, maps_read
from d4lens.observation import Observation
from d4lens.params import Count, ParameterGroup, Seed
from d4lens.progress import with_progress
from d4lens.results import metrics
from d4lens.results.outcome import Outcome, record
from d4lens.studies.error_bars import interval_drawing
from d4lens.studies.recovery import correlations
from d4lens.studies.samples import Samples, distance, simulate_samples
from d4lens.studies.study import Drawing, Inputs, Study

Array = NDArray[np.float64]

TOLERANCE = 0.3
"""Arcsec from the most massive subhalo, or from the rod, at which a point still hits."""
METHODS = ("integrated_gradients", "gradient")
_RING = 0.5  # arcsec to either side of the fitted Einstein radius
CELLS, HALF_WIDTH = 5, 2.25
"""Cells a side, and half the side in arcsec, of the square around the lens that is patched cell by cell."""
_CHUNK = 50


class Parameters(ParameterGroup):
    """Group `attribution`."""

    arms: Annotated[list[str], Field(min_length=1)]
    images: Annotated[int, Field(ge=2)]
    steps: Count
    patched: Annotated[int, Field(ge=2)]
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


def pointed(maps: Tensor, samples: Samples) -> Array:
    """Tell whether the highest point of a map lies within TOLERANCE of the substructure.

    Parameters
    ----------
    maps : Tensor
        (B, N, N), one of each image.
    samples : Samples
        B images with substructure.

    Returns
    -------
    ndarray
        (B,) of 0 and 1.
    """
    at = maps.flatten(1).argmax(1, keepdim=True)
    return (distance(samples).flatten(1).gather(1, at)[:, 0] <= TOLERANCE).double().numpy()


def baseline_hits(samples: Samples) -> dict[str, Array]:
    """Play the pointing game without a network.

    Parameters
    ----------
    samples : Samples
        B images with substructure.

    Returns
    -------
    dict of str to ndarray
        Hits (B,) by name: `random` and `random_on_ring`, the chance of any pixel and of any on the fitted ring; `centre` of the image;
        `significance` and `residual`, the maps' extremes.
    """
    near = (distance(samples) <= TOLERANCE).double()
    x, y = lensing.grid(samples.observation.n_pixels, samples.observation.pixel_scale, torch.float64)
    ring = ((torch.hypot(x, y) - samples.batch.need("fit")[:, 0, None, None]).abs() < _RING).double()
    centre = torch.zeros_like(near)
    centre[:, near.shape[1] // 2, near.shape[2] // 2] = 1
    return {
        "random": near.mean((1, 2)).numpy(),
        "random_on_ring": ((near * ring).sum((1, 2)) / ring.sum((1, 2))).numpy(),
        "centre": pointed(centre, samples),
        "significance": pointed(samples.batch.need("significance"), samples),
        "residual": pointed(samples.batch.need("residual").abs(), samples),
    }


def play(network: nn.Module, samples: Samples, steps: int, method: str) -> Array:
    """Play the pointing game with one network.

    Parameters
    ----------
    network : nn.Module
        The network.
    samples : Samples
        B images with substructure.
    steps : int
        Of the path of integrated gradients.
    method : str
        As `attribute` takes it.

    Returns
    -------
    ndarray
        Hits (B,) of 0 and 1.
    """
    hits = []
    labels = torch.from_numpy(samples.labels)
    whole = distance(samples).flatten(1)
    for first in with_progress(range(0, len(samples), _CHUNK), desc=f"pointing, {method}"):
        rows = slice(first, first + _CHUNK)
        drawn = attribute(network, samples.rows(rows), samples.smooth[rows], labels[rows], steps, method)
        at = drawn.flatten(1).argmax(1, keepdim=True)
        hits.append(whole[rows].gather(1, at)[:, 0] <= TOLERANCE)
    return torch.cat(hits).double().numpy()


def cell_masks(observation: Observation) -> Tensor:
    """Make the masks of the cells.

    Parameters
    ----------
    observation : Observation
        Grid and pixel scale.

    Returns
    -------
    Tensor
        (CELLS², N, N) bool.
    """
    x, y = lensing.grid(observation.n_pixels, observation.pixel_scale, torch.float64)
    column, row = (((axis + HALF_WIDTH) * CELLS / (2 * HALF_WIDTH)).floor() for axis in (x, y))
    inside = (column >= 0) & (column < CELLS) & (row >= 0) & (row < CELLS)
    masks: Tensor = ((row * CELLS + column) == torch.arange(CELLS**2)[:, None, None]) & inside
    return masks


@torch.inference_mode()
def moved(network: nn.Module, samples: Samples, n: int) -> Array:
    """Patch the maps a network reads, cell by cell, from the image into what the smooth lens would show.

    Parameters
    ----------
    network : nn.Module
        The network.
    samples : Samples
        Images with substructure.
    n : int
        How many of them, from the first on.

    Returns
    -------
    ndarray
        (n, CELLS²) by how many logits, substructure's class less `no`, the image's own cell moves the decision, in size.
    """
    batch, smooth = samples.rows(slice(n)), samples.smooth[:n]
    labels = torch.from_numpy(samples.labels[:n])[:, None]
    images, starts = {}, {}
    for name in maps_read(network):
        images[name] = batch.need(name)
        starts[name] = smooth if name == "counts" else torch.zeros_like(images[name])

    def decision(mask: Tensor) -> Tensor:
        mixed = {name: torch.where(mask, image, starts[name]) for name, image in images.items()}
        logits: Tensor = network(LensBatch(**{**batch.entries(), **mixed}))["logits"]
        return logits.gather(1, labels)[:, 0] - logits[:, 0]

    masks = cell_masks(samples.observation)
    before = decision(torch.zeros_like(masks[0]))
    found = [(decision(mask) - before).abs().double() for mask in with_progress(masks, desc="cells")]
    return torch.stack(found, 1).numpy()


def agreement(network: nn.Module, samples: Samples, n: int, steps: int) -> dict[str, Array]:
    """Correlate attributions with what patching moves, by rank over the cells of each image (Spearman).

    They are the integrated gradients summed in the cell (`integrated_gradients`), and how much the cell's maps differ from the
    smooth lens's, without a network (`difference`).

    Parameters
    ----------
    network : nn.Module
        The network.
    samples : Samples
        Images with substructure.
    n : int
        How many of them, from the first on.
    steps : int
        Of the path of integrated gradients.

    Returns
    -------
    dict of str to ndarray
        Correlations (n,) by what is held against patching.
    """
    batch, smooth = samples.rows(slice(n)), samples.smooth[:n]
    drawn = attribute(network, batch, smooth, torch.from_numpy(samples.labels[:n]), steps)
    apart = torch.zeros_like(smooth)
    for name in maps_read(network):
        apart = apart + (batch.need(name) - smooth if name == "counts" else batch.need(name)).abs()
    masks, effect = cell_masks(samples.observation).double(), moved(network, samples, n)
    by_cell = {
        name: torch.einsum("bij,cij->bc", maps.double(), masks).numpy()
        for name, maps in (("integrated_gradients", drawn), ("difference", apart))
    }
    return {name: spearman(values, effect) for name, values in by_cell.items()}


def spearman(a: Array, b: Array) -> Array:
    """Correlate the rows of two arrays by rank (Spearman).

    Parameters
    ----------
    a, b : ndarray
        (n, k).

    Returns
    -------
    ndarray
        (n,), NaN for a row without spread.
    """
    return correlations(*(rankdata(values, axis=1) for values in (a, b)))


def records(
    name: str, method: str, hits: Sequence[Array], kinds: NDArray[np.int64], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Take the share of hits, over trainings and images: of all, of spheres and of vortices.

    Parameters
    ----------
    name : str
        Of the arm or the baseline.
    method : str
        How its points were found.
    hits : sequence of ndarray
        Hits (B,) of each training; of a baseline one.
    kinds : ndarray
        (B,) classes of the images, indices into CLASSES.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    list of dict
        A record for all and for each kind.
    """
    rows = []
    for kind, chosen in (("all", kinds > 0), ("sphere", kinds == 1), ("vort", kinds == 2)):
        values = np.stack([training[chosen] for training in hits])
        labels: dict[str, Any] = {"arm": name, "method": method, "class": kind, "quantity": "hits"}
        whole = bool(np.isin(values, (0, 1)).all())  # a random point's are chances
        measured = metrics.mean_over_trainings(values, resamples, seed, share=whole)
        rows.append(record(*measured, values.shape[1], **labels))
    return rows


def agreement_records(
    name: str, state: str, several: Sequence[Mapping[str, Array]], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Take the mean rank agreement with patching, over networks and images, by what is held against it.

    Parameters
    ----------
    name : str
        Of the arm.
    state : str
        "trained" or "untrained".
    several : sequence of mapping
        Of each network what `agreement` returns.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    list of dict
        A record for each.
    """
    rows = []
    for method in several[0]:
        values = np.stack([found[method] for found in several])
        drawn = metrics.interval(metrics.drawn_means(values, resamples, seed))
        labels: dict[str, Any] = {"arm": name, "method": method, "state": state, "class": "all"}
        mean = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
        rows.append(record(mean, *drawn, int(np.isfinite(values).sum()), **labels, quantity="rank_agreement"))
    return rows


def summarise(rows: Sequence[Mapping[str, Any]], observation: Observation) -> Outcome:
    """Compose the study's outcome.

    Parameters
    ----------
    rows : sequence of mapping
        Of `records` and `agreement_records`.
    observation : Observation
        Pixel scale in arcsec.

    Returns
    -------
    Outcome
        The outcome.
    """
    of_all = [r for r in rows if r["class"] == "all" and r["quantity"] == "hits"]

    def share(r: Mapping[str, Any]) -> str:
        return f"{r['value']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}]"

    chance = {r["arm"]: r for r in of_all if r["method"] == "baseline"}
    listed = ", ".join(f"{name.replace('_', ' ')} {share(r)}" for name, r in chance.items())
    answers = [f"Share of images in which the highest point is a hit, without a network: {listed}."]
    for r in of_all:
        if r["method"] == "baseline":
            continue
        beats = [name for name, base in chance.items() if r["ci_low"] > (base["ci_high"] or 0)]
        loses = [name for name, base in chance.items() if r["ci_high"] < base["ci_low"]]
        verdict = f"above {', '.join(beats) if beats else 'none'} of these"
        verdict += f", below {', '.join(loses)}" if loses else ""
        answers.append(
            f"{r['arm']}, {r['method'].replace('_', ' ')}: {share(r)}, {verdict}.".replace(
                "random_on_ring", "random on ring"
            )
        )
    ranked = {(r["arm"], r["state"], r["method"]): r for r in rows if r["quantity"] == "rank_agreement"}
    for arm in dict.fromkeys(name for name, _, _ in ranked):
        own, base, begun = (
            ranked[arm, state, method]
            for state, method in (
                ("trained", "integrated_gradients"),
                ("trained", "difference"),
                ("untrained", "integrated_gradients"),
            )
        )
        if own["value"] is None or base["value"] is None:
            continue
        more = own["ci_low"] > base["ci_high"]
        answers.append(
            f"{arm}: over the cells of an image the attribution and what patching moves agree in rank by {share(own)} (Spearman), "
            f"untrained by {share(begun) if begun['value'] is not None else 'undefined'}; the bare difference from the smooth lens "
            f"agrees by {share(base)}, {'less' if more else 'no less'}."
        )
    return Outcome(
        question="Does a decision come from where the substructure is?",
        answers=answers,
        cannot_tell=[
            f"A hit is a point within {TOLERANCE:g} arcsec ({TOLERANCE / observation.pixel_scale:.0f} pixels) of the most massive "
            "subhalo or of the rod; a sphere's other subhalos, some as bright, count as misses.",
            "A mass is seen where arcs pass it, not where there is no light; the best map cannot point there.",
            "Gradients say what a small change would do; the way from a smooth lens to the image passes through images that no "
            "telescope takes.",
            "Images of networks that read the fit's maps are attributed to these maps, which point at masses by themselves: compare "
            "with the significance.",
            "Ranks agree already where both follow the light: only what goes beyond the bare difference speaks for the attribution.",
        ],
        records=list(rows),
        controls={
            "random": "chance of a random pixel",
            "random_on_ring": "chance of a random pixel of the fitted ring",
            "centre": "the image's centre",
            "significance": "highest point of the significance map: the network's input, no network",
            "residual": "largest absolute residual",
            "untrained": "the same network before training",
            "difference": "rank agreement of patching with how much a cell differs from the smooth lens, without a network",
        },
    )  # fmt: skip


def run(params: Parameters, inputs: Inputs) -> tuple[Outcome, list[Drawing]]:
    """Play the pointing game of every training, of as many untrained networks and without a network, and rank the cells.

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
        Hits and rank agreement.
    """
    arms = inputs.arms(params.arms)
    lenses = simulate_samples(params.images, params.seed, arms[0].observation, "substructure")
    given, rows = (params.bootstrap, params.seed), []
    for name, hits in baseline_hits(lenses).items():
        rows += records(name, "baseline", [hits], lenses.labels, *given)
    for arm in arms:
        begun = [arm.untrained(params.seed + i) for i in range(len(arm.networks))]
        for method in METHODS:
            played = [play(network, lenses, params.steps, method) for network in arm.networks]
            rows += records(arm.name, method, played, lenses.labels, *given)
        played = [play(network, lenses, params.steps, "gradient") for network in begun]
        rows += records(arm.name, "gradient_untrained", played, lenses.labels, *given)
        for state, networks in (("trained", arm.networks), ("untrained", begun)):
            found = [agreement(network, lenses, params.patched, params.steps) for network in networks]
            rows += agreement_records(arm.name, state, found, *given)
    drawing = interval_drawing(
        "hits",
        "The pointing game",
        "Share of images whose highest point of attribution lies at the true substructure, with 95 % intervals over trainings and "
        "images; baselines need no network.",
        [r for r in rows if r["quantity"] == "hits"],
        ("class", "arm", "method"),
        "share of hits",
        marks=(0, 1),
    )
    ranks = interval_drawing(
        "ranks",
        "Attribution against patching",
        "Rank agreement over the cells of an image with the logits that patching the cell alone moves, mean over the images "
        "with 95 % intervals over trainings and images: of the attribution, and of the bare difference from the smooth lens.",
        [r for r in rows if r["quantity"] == "rank_agreement"],
        ("state", "arm", "method"),
        "Spearman rank correlation",
        marks=(0, 1),
    )
    return summarise(rows, lenses.observation), [drawing, ranks]


STUDY = Study("Interpretability: attribution", Parameters, ("networks",), run)
