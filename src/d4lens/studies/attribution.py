"""Attribution: whether decisions come from where the substructure is.

The maps of `d4lens.models.integrated_gradients`, scored by the pointing game (Zhang et al. 1608.00507): does the map's highest
point lie within a tolerance of the true substructure?
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from d4lens import lensing
from d4lens.models.integrated_gradients import attribute
from d4lens.observation import Observation
from d4lens.params import Count, ParameterGroup, Seed
from d4lens.progress import progress
from d4lens.studies.error_bars import intervals
from d4lens.studies.outcome import Outcome, record
from d4lens.studies.samples import Samples, distance, simulate
from d4lens.studies.study import Drawing, Inputs, Study

Array = NDArray[np.float64]

TOLERANCE = 0.3
"""Arcsec from the most massive subhalo, or from the rod, at which a point still hits."""
METHODS = ("integrated_gradients", "gradient")
BASELINES = ("random", "random_on_ring", "centre", "significance", "residual")
"""Points chosen without a network: any pixel, any pixel of the fitted ring, the image's centre, the maps' extremes."""
_RING = 0.5  # arcsec to either side of the fitted Einstein radius
_CHUNK = 50


class Parameters(ParameterGroup):
    """Group `attribution`."""

    arms: Annotated[list[str], Field(min_length=1)]
    images: Annotated[int, Field(ge=2)]
    steps: Count
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


def pointed(maps: Tensor, samples: Samples) -> Array:
    """Whether the highest point of each map (B, N, N) lies within TOLERANCE of the substructure: (B,) of 0 and 1."""
    at = maps.flatten(1).argmax(1, keepdim=True)
    return (distance(samples).flatten(1).gather(1, at)[:, 0] <= TOLERANCE).double().numpy()


def baselines(samples: Samples) -> dict[str, Array]:
    """Hits of BASELINES, (B,) each; those of random points are the chances."""
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
    """Play the pointing game with one network over images with substructure: hits (B,)."""
    hits = []
    labels = torch.from_numpy(samples.labels)
    whole = distance(samples).flatten(1)
    for first in progress(range(0, len(samples), _CHUNK), desc=f"pointing, {method}"):
        rows = slice(first, first + _CHUNK)
        drawn = attribute(network, samples.rows(rows), samples.smooth[rows], labels[rows], steps, method)
        at = drawn.flatten(1).argmax(1, keepdim=True)
        hits.append(whole[rows].gather(1, at)[:, 0] <= TOLERANCE)
    return torch.cat(hits).double().numpy()


def records(
    name: str, method: str, hits: Array, kinds: NDArray[np.int64], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Share of hits of a model or baseline with its interval over images: of all, of spheres and of vortices."""
    rows = []
    for kind, chosen in (("all", kinds > 0), ("sphere", kinds == 1), ("vort", kinds == 2)):
        values = hits[chosen]
        drawn = np.random.default_rng(seed).choice(values, (resamples, len(values))).mean(1)
        labels: dict[str, Any] = {"model": name, "method": method, "class": kind, "quantity": "hits"}
        low, high = np.quantile(drawn, [0.025, 0.975])
        rows.append(record(float(values.mean()), float(low), float(high), len(values), **labels))
    return rows


def outcome(rows: Sequence[Mapping[str, Any]], observation: Observation) -> Outcome:
    """Compose the study's outcome from the rows of `records`."""
    of_all = [r for r in rows if r["class"] == "all"]

    def share(r: Mapping[str, Any]) -> str:
        return f"{r['value']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}]"

    chance = {r["model"]: r for r in of_all if r["method"] == "baseline"}
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
            f"{r['model']}, {r['method'].replace('_', ' ')}: {share(r)}, {verdict}.".replace(
                "random_on_ring", "random on ring"
            )
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
        ],
        records=list(rows),
        controls={
            "random": "chance of a random pixel",
            "random_on_ring": "chance of a random pixel of the fitted ring",
            "centre": "the image's centre",
            "significance": "highest point of the significance map: the network's input, no network",
            "residual": "largest absolute residual",
            "untrained": "the same network before training",
        },
    )  # fmt: skip


def run(params: Parameters, inputs: Inputs) -> tuple[Outcome, list[Drawing]]:
    """Play the pointing game of every arm, trained and untrained, and without a network."""
    arms = inputs.arms(params.arms)
    lenses = simulate(params.images, params.seed, arms[0].observation, "substructure")
    given, rows = (params.bootstrap, params.seed), []
    for name, hits in baselines(lenses).items():
        rows += records(name, "baseline", hits, lenses.labels, *given)
    for arm in arms:
        for method in METHODS:
            hits = play(arm.networks[0], lenses, params.steps, method)
            rows += records(arm.name, method, hits, lenses.labels, *given)
        hits = play(arm.untrained(params.seed), lenses, params.steps, "gradient")
        rows += records(arm.name, "gradient_untrained", hits, lenses.labels, *given)
    drawing = intervals(
        "hits",
        "The pointing game",
        "Share of images whose highest point of attribution lies at the true substructure, with 95 % intervals over images; "
        "baselines need no network.",
        rows,
        ("class", "model", "method"),
        "share of hits",
        marks=(0, 1),
    )
    return outcome(rows, lenses.observation), [drawing]


STUDY = Study("Interpretability: attribution", Parameters, ("networks",), run)
