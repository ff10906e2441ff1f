"""Where in the image a decision comes from, and whether that is where the substructure is.

Integrated gradients (Sundararajan et al. 1703.01365) of the logit of a class against `no`, along the straight way from
what a smooth lens would show, no residual and no significance, to the image; and the plain gradient times the same
difference. The channels' absolute values are added up pixel by pixel. Scored by the pointing game (Zhang et al.
1608.00507): does the map's highest point lie within a tolerance of the true substructure?
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from d4lens import lensing
from d4lens.interpret.layers import layers_of
from d4lens.interpret.samples import Samples, distance
from d4lens.observation import Observation
from d4lens.progress import progress
from d4lens.studies import Figure, Study, record

Array = NDArray[np.float64]

TOLERANCE = 0.3
"""Arcsec from the most massive subhalo, or from the rod, at which a point still hits."""
METHODS = ("integrated_gradients", "gradient")
BASELINES = ("random", "random_on_ring", "centre", "significance", "residual")
"""Points chosen without a network: any pixel, any pixel of the fitted ring, the image's centre, the maps' extremes."""
_SMOOTHING = 1.0  # pixels: the highest point of single pixels is noise
_RING = 0.5  # arcsec to either side of the fitted Einstein radius
_CHUNK = 50


def maps_read(network: nn.Module) -> tuple[str, ...]:
    """The maps of a batch that a network's class is read off: counts where it sees no others."""
    found = [layer.key for layer in layers_of(network) if layer.part == "input" and layer.kind == "scalar"]
    return tuple(name for name in found if name != "counts") or ("counts",)


def attribute(
    network: nn.Module,
    batch: Mapping[str, Tensor],
    smooth: Tensor,
    of_class: Tensor,
    steps: int = 16,
    method: str = "integrated_gradients",
) -> Tensor:
    """How much each pixel adds to the logit of `of_class` (B,) over that of `no`: (B, N, N) float32, at least 0.

    batch: as `network` reads it. smooth: (B, N, N) counts of the fitted smooth lens, the baseline of counts; that of the
    residual and the significance is zero. steps: points of the midpoint rule.
    """
    names = maps_read(network)
    fixed = {name: value.detach() for name, value in batch.items()}
    start = {name: smooth if name == "counts" else torch.zeros_like(fixed[name]) for name in names}
    way = {name: fixed[name] - start[name] for name in names}
    points = [1.0] if method == "gradient" else [(i + 0.5) / steps for i in range(steps)]
    total = {name: torch.zeros_like(fixed[name]) for name in names}
    with torch.enable_grad():
        for t in points:
            leaves = [(start[name] + t * way[name]).detach().requires_grad_() for name in names]
            logits = network({**fixed, **dict(zip(names, leaves, strict=True))})["logits"]
            wanted = (logits.gather(1, of_class[:, None])[:, 0] - logits[:, 0]).sum()
            for name, gradient in zip(names, torch.autograd.grad(wanted, leaves), strict=True):
                total[name] += gradient / len(points)
    whole = sum(((total[name] * way[name]).abs() for name in names), torch.zeros_like(fixed["counts"]))
    return lensing.convolve_psf(whole.float(), _SMOOTHING).clamp_min(0)


def pointed(maps: Tensor, samples: Samples) -> Array:
    """Whether the highest point of each map (B, N, N) lies within TOLERANCE of the substructure: (B,) of 0 and 1."""
    at = maps.flatten(1).argmax(1, keepdim=True)
    return (distance(samples).flatten(1).gather(1, at)[:, 0] <= TOLERANCE).double().numpy()


def baselines(samples: Samples) -> dict[str, Array]:
    """Hits of BASELINES, (B,) each; those of random points are the chances."""
    near = (distance(samples) <= TOLERANCE).double()
    x, y = lensing.grid(samples.observation.n_pixels, samples.observation.pixel_scale, torch.float64)
    ring = ((torch.hypot(x, y) - samples.batch["fit"][:, 0, None, None]).abs() < _RING).double()
    centre = torch.zeros_like(near)
    centre[:, near.shape[1] // 2, near.shape[2] // 2] = 1
    return {
        "random": near.mean((1, 2)).numpy(),
        "random_on_ring": ((near * ring).sum((1, 2)) / ring.sum((1, 2))).numpy(),
        "centre": pointed(centre, samples),
        "significance": pointed(samples.batch["significance"], samples),
        "residual": pointed(samples.batch["residual"].abs(), samples),
    }


def play(network: nn.Module, samples: Samples, steps: int, method: str) -> Array:
    """The pointing game of one network over images with substructure: hits (B,)."""
    hits = []
    labels = torch.from_numpy(samples.labels)
    whole = distance(samples).flatten(1)
    for first in progress(range(0, len(samples), _CHUNK), desc=f"pointing, {method}"):
        rows = slice(first, first + _CHUNK)
        drawn = attribute(network, samples.rows(rows), samples.smooth[rows], labels[rows], steps, method)
        at = drawn.flatten(1).argmax(1, keepdim=True)
        hits.append(whole[rows].gather(1, at)[:, 0] <= TOLERANCE)
    return torch.cat(hits).double().numpy()


def records(name: str, method: str, hits: Array, kinds: NDArray[np.int64], resamples: int, seed: int) -> list:
    """Share of hits of a model or baseline with its interval over images: of all, of spheres and of vortices."""
    rows = []
    for kind, chosen in (("all", kinds > 0), ("sphere", kinds == 1), ("vort", kinds == 2)):
        values = hits[chosen]
        drawn = np.random.default_rng(seed).choice(values, (resamples, len(values))).mean(1)
        labels: dict[str, Any] = {"model": name, "method": method, "class": kind, "quantity": "hits"}
        low, high = np.quantile(drawn, [0.025, 0.975])
        rows.append(record(float(values.mean()), float(low), float(high), len(values), **labels))
    return rows


def study(rows: Sequence[Mapping[str, Any]], observation: Observation, figures: Sequence[Figure] = ()) -> Study:
    """The study's outcome from the rows of `records`."""
    of_all = [r for r in rows if r["class"] == "all"]

    def share(r: Mapping[str, Any]) -> str:
        return f"{r['value']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}]"

    chance = {r["model"]: r for r in of_all if r["method"] == "baseline"}
    listed = ", ".join(f"{name.replace('_', ' ')} {share(r)}" for name, r in chance.items())
    answers = [f"Without a network the highest point hits for: {listed}."]
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
    return Study(
        name="attribution",
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
        figures=list(figures),
        controls={
            "random": "chance of a random pixel",
            "random_on_ring": "chance of a random pixel of the fitted ring",
            "centre": "the image's centre",
            "significance": "highest point of the significance map: the network's input, no network",
            "residual": "largest absolute residual",
            "untrained": "the same network before training",
        },
    )  # fmt: skip
