"""Symmetry measured: how exactly each layer turns with the image, and what a turn does to the decision.

The eight elements act by flips and quarter turns of the array: nothing is interpolated. A layer's error under g is
||f(g x) - rho(g) f(x)|| / ||f(x)||, with rho what the layer's kind promises; the largest over the seven elements beside
the identity counts. What rounding allows is a multiple of the precision's unit, so that a layer that is equivariant in
exact arithmetic loses nine orders of magnitude of error from float32 to float64 and one that is not loses none. (escnn's
own check has a tolerance of 0.1: it proves nothing.)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from d4lens.classes import CLASSES
from d4lens.data import arrays
from d4lens.lensing import d4
from d4lens.macrofit.columns import MAPS
from d4lens.models import scores
from d4lens.models.batch import LensBatch
from d4lens.params import Count, ParameterGroup, Seed
from d4lens.progress import with_progress
from d4lens.results import metrics
from d4lens.results.outcome import Outcome, record
from d4lens.studies.error_bars import interval_drawing
from d4lens.studies.layers import Layer, capture, layers_of, turned
from d4lens.studies.study import Drawing, Inputs, Study
from d4lens.train.lenses import load_lenses

Array = NDArray[np.float64]

PROMISED = ("scalar", "vector", "regular", "fit", "invariant")
"""Kinds of layers that turn with the image by construction."""
ROUNDING = 2.0**8
"""Units of the last place by which some twenty layers of sums may differ; about ten are met."""


class Parameters(ParameterGroup):
    """Group `symmetry`; without `arms` it takes every one of the profile."""

    arms: Annotated[list[str], Field(min_length=1)] | None
    images: Annotated[int, Field(ge=6)]
    layer_images: Count
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


def bound(dtype: torch.dtype) -> float:
    """Return the largest relative error that rounding may make.

    Parameters
    ----------
    dtype : torch.dtype
        Precision of the network.

    Returns
    -------
    float
        The error.
    """
    return ROUNDING * torch.finfo(dtype).eps


@torch.inference_mode()
def equivariance_errors(network: nn.Module, batch: LensBatch, dtype: torch.dtype) -> dict[Layer, float]:
    """Measure the largest relative error of each layer over the elements of D4.

    Parameters
    ----------
    network : nn.Module
        A network in the precision `dtype`.
    batch : LensBatch
        B images.
    dtype : torch.dtype
        The precision.

    Returns
    -------
    dict of Layer to float
        Norm of the difference over the norm of the activation.
    """
    batch = batch.to(dtype=dtype)
    layers = layers_of(network)
    straight = capture(network, batch, layers)[1]
    worst = dict.fromkeys(layers, 0.0)
    for g in d4.ELEMENTS[1:]:
        seen = capture(network, batch.turned(g), layers)[1]
        for layer in layers:
            x = straight[layer.name]
            off = float((seen[layer.name] - turned(layer, x, g)).norm() / x.norm().clamp_min(torch.finfo(dtype).tiny))
            worst[layer] = max(worst[layer], off)
    return worst


def largest(several: Iterable[Mapping[Layer, float]]) -> dict[Layer, float]:
    """Take of each layer the largest of several networks' errors.

    Parameters
    ----------
    several : iterable of mapping
        Errors by layer, one mapping of each network.

    Returns
    -------
    dict of Layer to float
        The largest by layer.
    """
    worst: dict[Layer, float] = {}
    for found in several:
        for layer, off in found.items():
            worst[layer] = max(worst.get(layer, 0.0), off)
    return worst


@torch.inference_mode()
def orbit(network: nn.Module, batches: Iterable[LensBatch]) -> Tensor:
    """Predict all images under each element of D4.

    Parameters
    ----------
    network : nn.Module
        The network.
    batches : iterable of LensBatch
        The n images.

    Returns
    -------
    Tensor
        Logits (8, n, C) float64.
    """
    rows = [
        torch.stack([network(batch.turned(g))["logits"].double() for g in d4.ELEMENTS])
        for batch in with_progress(batches, desc="orbits")
    ]
    return torch.cat(rows, 1)


def averaged(logits: Tensor) -> Tensor:
    """Average the orbit's logits as test-time averaging of each view does, in the order that view meets them.

    Parameters
    ----------
    logits : Tensor
        (8, n, C).

    Returns
    -------
    Tensor
        (8, n, C).
    """
    views = []
    for g in d4.ELEMENTS:
        order = [d4.compose(h, g) for h in d4.ELEMENTS]
        views.append(logits[order].float().double().mean(0))
    return torch.stack(views)


def spread(logits: Tensor) -> Array:
    """Take the standard deviation over the orbit of each image's logits: root mean square over the classes.

    Parameters
    ----------
    logits : Tensor
        (8, n, C).

    Returns
    -------
    ndarray
        (n,).
    """
    return logits.std(0, unbiased=False).square().mean(1).sqrt().numpy()


def flipped(logits: Tensor) -> Array:
    """Tell whether the predicted class changes somewhere on the orbit.

    Parameters
    ----------
    logits : Tensor
        (8, n, C).

    Returns
    -------
    ndarray
        (n,) of 0 and 1.
    """
    classes = logits.argmax(2)
    return (classes != classes[0]).any(0).double().numpy()


def layer_records(
    arm: str, state: str, found: Mapping[torch.dtype, Mapping[Layer, float]], n: int
) -> list[dict[str, Any]]:
    """Make a record for each layer and precision. The value has two digits: more of a rounding error mean nothing.

    Parameters
    ----------
    arm : str
        The arm.
    state : str
        "trained" or "untrained".
    found : mapping of torch.dtype to mapping
        Errors by layer, by precision.
    n : int
        Number of images.

    Returns
    -------
    list of dict
        The records.
    """
    return [
        {
            **{"arm": arm, "state": state, "layer": layer.name, "kind": layer.kind},
            **{"precision": str(dtype).removeprefix("torch."), "quantity": "equivariance_error"},
            **{"value": float(f"{off:.1e}"), "ci_low": None, "ci_high": None, "n": n},
        }
        for dtype, of in found.items()
        for layer, off in of.items()
    ]


def orbit_records(
    arm: str, several: Sequence[Tensor], labels: NDArray[np.int64], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Make the records of an arm's trainings: spread, flips and AUC under each element, plain and averaged over the orbit.

    Parameters
    ----------
    arm : str
        The arm.
    several : sequence of Tensor
        Logits (8, n, C) of each training.
    labels : ndarray
        (n,) classes, indices into CLASSES.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    list of dict
        The records.
    """
    rows = []
    for view, stacks in (("plain", several), ("tta", [averaged(logits) for logits in several])):
        about: dict[str, Any] = {"arm": arm, "view": view}
        for quantity, of, share in (("orbit_spread", spread, False), ("flipped", flipped, True)):
            values = [of(stack) for stack in stacks]
            measured = metrics.mean_over_trainings(values, resamples, seed, share)
            rows.append(record(*measured, len(labels), **about, quantity=quantity))
        for g in d4.ELEMENTS if view == "plain" else d4.ELEMENTS[:1]:
            turns = [scores.softmax(stack[g].numpy()) for stack in stacks]
            measured = metrics.auc_over_trainings(labels, turns, resamples, seed)
            rows.append(record(*measured, len(labels), **about, quantity="auc_macro", element=g))
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> Outcome:
    """Compose the study's outcome.

    Parameters
    ----------
    rows : sequence of mapping
        Of `layer_records` and `orbit_records`.

    Returns
    -------
    Outcome
        The outcome.
    """
    answers = []
    by_layer = [r for r in rows if r["quantity"] == "equivariance_error"]
    for arm in dict.fromkeys(r["arm"] for r in by_layer):
        of = [r for r in by_layer if r["arm"] == arm and r["state"] == "trained"]
        kept = [r for r in of if r["kind"] in PROMISED]
        over = [r for r in kept if r["value"] > bound(getattr(torch, r["precision"]))]
        text = f"{arm}: "
        if kept:
            worst = {p: max(r["value"] for r in kept if r["precision"] == p) for p in ("float32", "float64")}
            text += (
                f"{len(kept) // 2} layers promise to turn with the image and are off by at most {worst['float32']:.1e} in float32 "
                f"and {worst['float64']:.1e} in float64 (rounding allows {bound(torch.float32):.1e} and "
                f"{bound(torch.float64):.1e})"
            )
            text += f"; beyond rounding: {', '.join(dict.fromkeys(r['layer'] for r in over))}" if over else ""
        else:
            text += "no layer promises to turn with the image"
        plain = [
            r for r in of if r["kind"] == "plain" and r["precision"] == "float64" and r["value"] > bound(torch.float64)
        ]
        if plain:
            at = {r["layer"]: r["value"] for r in plain}
            first = next(iter(at))
            text += f"; the symmetry first breaks at {first} ({at[first]:.2g}), and the logits are off by {at.get('logits', 0.0):.2g}"
        answers.append(text + ".")
    found = {(r["arm"], r["view"], r["quantity"], r.get("element", 0)): r for r in rows if "view" in r}
    for arm in dict.fromkeys(r["arm"] for r in rows if "view" in r):
        aucs = [found[arm, "plain", "auc_macro", g]["value"] for g in d4.ELEMENTS]
        flips, tta = found[arm, "plain", "flipped", 0], found[arm, "tta", "flipped", 0]
        answers.append(
            f"{arm}: over the orbit its logits scatter by {found[arm, 'plain', 'orbit_spread', 0]['value']:.2g} and "
            f"{100 * flips['value']:.1f} % [{100 * flips['ci_low']:.1f}, {100 * flips['ci_high']:.1f}] of its predictions flip, "
            f"{100 * tta['value']:.1f} % averaged over the eight views; macro AUC {min(aucs):.3f} to {max(aucs):.3f} over the "
            f"eight test sets, {found[arm, 'tta', 'auc_macro', 0]['value']:.3f} averaged."
        )
    return Outcome(
        question="Which layers turn exactly with the image, where does the symmetry break, and what does averaging give back?",
        answers=answers,
        cannot_tell=[
            "Only the eight symmetries of the pixel grid are exact; nothing is said of other angles or of shifts.",
            "Averaging over the orbit makes any network invariant, so that a flip rate of zero with it says nothing of the network.",
            "The sky is symmetric, the training set is not (position angles lie within a narrow range): a lower AUC on turned "
            "images mixes the network's asymmetry with images unlike those it was trained on.",
            "The smooth fit is turned with the image and not made anew.",
        ],
        records=list(rows),
        controls={
            "untrained": "equivariance holds by construction, so that training changes nothing but rounding",
            "plain": "layers of which nothing is promised, compared as maps of scalars: of order one",
            "float64": "an error that shrinks with the precision is rounding",
            f"AUC of {len(CLASSES)} classes": "equal under all elements for an invariant network",
        },
    )


def run(params: Parameters, inputs: Inputs) -> tuple[Outcome, list[Drawing]]:
    """Measure the layers and the decisions of every training of every arm, and the layers of as many untrained networks.

    Parameters
    ----------
    params : Parameters
        The study's group.
    inputs : Inputs
        Its arrays, fits and networks.

    Returns
    -------
    outcome : Outcome
        The outcome.
    drawings : list of Drawing
        Errors of the layers, and flips.
    """
    folder, fits = inputs.folder("arrays"), inputs.folder("fits")
    arms = inputs.arms(params.arms or inputs.profile_arms)
    lenses = load_lenses(folder, fits, "test", ("counts", *MAPS, "fit"), arrays.load_observation(folder))
    rows = np.linspace(0, len(lenses) - 1, min(params.images, len(lenses))).round().astype(int)
    batches = [lenses[part.tolist()] for part in np.array_split(rows, -(-len(rows) // 40))]
    few, labels = lenses[rows[:: max(1, len(rows) // params.layer_images)].tolist()], lenses.labels[rows]
    found = []
    for arm in arms:
        begun = [arm.untrained(params.seed + i) for i in range(len(arm.networks))]
        for state, networks in (("trained", arm.networks), ("untrained", begun)):
            kinds = (torch.float64, torch.float32)
            off = {
                kind: largest(equivariance_errors(network.to(kind), few, kind) for network in networks)
                for kind in kinds
            }
            found += layer_records(arm.name, state, off, len(few))
        orbits = [orbit(network.float(), batches) for network in arm.networks]
        found += orbit_records(arm.name, orbits, labels, params.bootstrap, params.seed)
    by_layer = [
        r for r in found if r["quantity"] == "equivariance_error" and r["state"] == "trained" and r["value"] > 0
    ]
    flips = [{**r, "panel": "flipped"} for r in found if r["quantity"] == "flipped"]
    return summarise(found), [
        interval_drawing(
            "errors",
            "Equivariance error of each layer",
            "Largest relative error over the elements of D4 and the trainings.",
            by_layer,
            ("arm", "layer", "precision"),
            "relative error",
            log=True,
            marks=[bound(kind) for kind in (torch.float32, torch.float64)],
        ),
        interval_drawing(
            "flips",
            "Predictions that a turn of the image changes",
            "Share of test images, 95 % intervals.",
            flips,
            ("panel", "arm", "view"),
            "share of images",
            marks=(0,),
        ),
    ]


STUDY = Study("Interpretability: symmetry", Parameters, ("networks", "arrays", "fits"), run)
