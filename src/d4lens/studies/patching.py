"""Activation patching: which layers carry the decision from an image with substructure to the same image without.

Two runs of one network on a pair of images that differ in the substructure alone; the activation of one layer is taken
from one run into the other. Denoising puts the clean (with substructure) activation into the corrupt run and asks what
share of the logit difference comes back: is the layer sufficient? Noising puts the corrupt one into the clean run and
asks what share is lost: is it necessary? Zhang & Nanda 2309.16042 (the logit difference as the measure), Heimersheim &
Nanda 2404.15255 (both directions, and what a control must be).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from d4lens.models.batch import LensBatch
from d4lens.params import ParameterGroup, Positive, Seed
from d4lens.progress import progress
from d4lens.results.metrics import holm
from d4lens.studies.error_bars import intervals
from d4lens.studies.layers import Layer, blended, capture, layers_of, outputs, run_edited
from d4lens.studies.outcome import Outcome, record
from d4lens.studies.samples import Samples, distance, pairs, radius
from d4lens.studies.study import Drawing, Inputs, Study

Array = NDArray[np.float64]

REGIONS = ("whole", "ring", "substructure", "mirrored", "elsewhere")
"""Where a map is patched: everywhere; on the ring; around the true substructure; as far on the lens's other side, which is
as large; on all that is neither ring nor substructure."""
SPATIAL = {"maps_of_the_fit": ("residual", "significance"), "image": ("counts",), "convergence": ("convergence",)}
PHYSICS = ("convergence", "deflection", "source")
HEAD_PHYSICS = tuple(f"head.{name}" for name in ("kappa", "psi", "alpha_x", "alpha_y", "source", "unexplained"))
DRAWN = ("denoising", "noising", "same_class_donor", "shuffled_donor", "random_init")
_REACH = 0.5  # arcsec to either side of the ring, and around the substructure
_CHUNK = 40
_DONOR_SHIFT = 2  # sphere and vortex take turns, so two places further stands the same class
_FEWEST = 10  # pairs below which no share is given


class Parameters(ParameterGroup):
    """Group `patching`."""

    arms: Annotated[list[str], Field(min_length=1)]
    pairs: Annotated[int, Field(ge=2)]
    controls: Annotated[int, Field(ge=2)]
    min_difference: Positive
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


@dataclass(frozen=True)
class Effects:
    """Logit differences of P pairs in one network: the substructure's class minus `no`, in logits.

    patched: by condition and layer (or map and region), (P,), or fewer for a control. largest_self: the largest change
    of a logit by any layer's own activation put back. all_layers: with every layer but the logits patched.
    """

    layers: list[Layer]
    clean: Array
    corrupt: Array
    patched: dict[tuple[str, str], Array]
    all_layers: Array
    largest_self: float
    area: dict[str, float]


@torch.inference_mode()
def measure(
    network: nn.Module, clean: Samples, corrupt: Samples, controls: int, only_denoising: bool = False
) -> Effects:
    """Patch every layer of `network` both ways over all pairs, and some maps region by region.

    clean and corrupt: as `samples.pairs` gives them. controls: pairs, from the first on, for the donors that should do
    nothing (another image of the corrupt class) or little (another pair's clean image). only_denoising: over the first
    `controls` pairs alone and nothing else.
    """
    layers, n = layers_of(network), controls if only_denoising else len(clean)
    masks = regions(clean)
    parts: dict[tuple[str, str], list[Tensor]] = {}
    ends: dict[str, list[Tensor]] = {"clean": [], "corrupt": [], "all": []}
    largest_self = 0.0
    for start in progress(range(0, n, _CHUNK), desc="patching"):
        rows = slice(start, min(start + _CHUNK, n))
        with_, without = clean.rows(rows), corrupt.rows(rows)
        of_class = torch.from_numpy(clean.labels[rows])

        def difference(logits: Tensor, of_class: Tensor = of_class) -> Tensor:
            return (logits.gather(1, of_class[:, None])[:, 0] - logits[:, 0]).double()

        l_clean, a_clean = capture(network, with_, layers)
        l_corrupt, a_corrupt = capture(network, without, layers)
        fixed = {"clean": outputs(network, with_, layers), "corrupt": outputs(network, without, layers)}
        ends["clean"].append(difference(l_clean))
        ends["corrupt"].append(difference(l_corrupt))
        everything = {layer: blended(a_clean[layer.name]) for layer in layers if layer.part != "logits"}
        ends["all"].append(difference(run_edited(network, without, everything)))

        for layer in layers:
            before = {name: {key: fixed[name][key] for key in layer.untouched} for name in fixed}

            def patch(batch: LensBatch, donor: Tensor, base: dict[str, Any], layer: Layer = layer) -> Tensor:
                return run_edited(network, batch, {layer: blended(donor)}, base)

            new = {"denoising": patch(without, a_clean[layer.name], before["corrupt"])}
            if not only_denoising:
                new["noising"] = patch(with_, a_corrupt[layer.name], before["clean"])
            if not only_denoising and start < controls:
                for name, donors in (("same_class_donor", a_corrupt), ("shuffled_donor", a_clean)):
                    new[name] = patch(without, donors[layer.name].roll(_DONOR_SHIFT, 0), before["corrupt"])
            if start == 0:
                own = patch(without, a_corrupt[layer.name], before["corrupt"])
                largest_self = max(largest_self, float((own - l_corrupt).abs().max()))
            for name, logits in new.items():
                parts.setdefault((name, layer.name), []).append(difference(logits))
        if not only_denoising:
            for group, chosen in _spatial(layers).items():
                for region in REGIONS:
                    mask = masks[region][rows]
                    edits = {layer: blended(a_clean[layer.name], mask) for layer in chosen}
                    parts.setdefault((group, region), []).append(difference(run_edited(network, without, edits)))
    joined = {key: torch.cat(values).numpy() for key, values in parts.items()}
    whole = {name: torch.cat(values).numpy() for name, values in ends.items()}
    area = {region: float(mask.double().mean()) for region, mask in masks.items()}
    return Effects(layers, whole["clean"], whole["corrupt"], joined, whole["all"], largest_self, area)


def regions(samples: Samples) -> dict[str, Tensor]:
    """Masks (B, N, N) of REGIONS for images with substructure."""
    near = distance(samples) < _REACH
    ring = radius(samples).abs() < _REACH
    opposite = near.flip((-2, -1)) & ~near
    return {
        "whole": torch.ones_like(near),
        "ring": ring,
        "substructure": near,
        "mirrored": opposite,
        "elsewhere": ~(ring | near),
    }


def _spatial(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    found = {group: [layer for layer in layers if layer.name in names] for group, names in SPATIAL.items()}
    if found["maps_of_the_fit"]:
        found["image"] = []
    return {group: chosen for group, chosen in found.items() if chosen}


def recovered(effects: Effects, condition: str, name: str, least: float) -> Array:
    """Take the share of the logit difference that a patch moves: 0 for none, 1 for all of it.

    Denoising and every control: (patched - corrupt) / (clean - corrupt); noising: (clean - patched) / (clean - corrupt).

    Parameters
    ----------
    effects : Effects
        What was measured.
    condition : str
        One of the conditions of `measure`.
    name : str
        The layer.
    least : float
        Logits; NaN where |clean - corrupt| is below.

    Returns
    -------
    ndarray
        (P,) or fewer.
    """
    new = effects.patched[condition, name]
    return _share(effects, new, least, lost=condition == "noising")


def _share(effects: Effects, new: Array, least: float, lost: bool = False) -> Array:
    clean, corrupt = effects.clean[: len(new)], effects.corrupt[: len(new)]
    whole = clean - corrupt
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(whole) >= least, ((clean - new) if lost else (new - corrupt)) / whole, np.nan)


def interval(values: Sequence[Array], resamples: int, seed: int) -> tuple[float, float, float, int]:
    """Bound a mean over trainings and pairs by its 95 % percentile interval.

    Pairs are drawn anew, the same for all trainings, and the trainings with them (Davison & Hinkley 1997, section 3.8).

    Parameters
    ----------
    values : sequence of ndarray
        A row (P,) for each training; NaN counts as missing.
    resamples : int
        How often they are drawn.
    seed : int
        Of the draws.

    Returns
    -------
    tuple
        Mean, lower and upper end, number of values; all NaN if fewer than ten values are there.
    """
    stack = np.stack(list(values))
    n = int(np.isfinite(stack).sum())
    if n < _FEWEST:
        return float("nan"), float("nan"), float("nan"), n
    drawn = _resampled_means(stack, resamples, seed)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(np.nanmean(stack)), float(low), float(high), n


def _resampled_means(stack: Array, resamples: int, seed: int) -> Array:
    """Means of `resamples` draws of trainings and pairs from values (S, P) with gaps."""
    by_training, by_pair = (_weights(size, resamples, seed + i) for i, size in enumerate(stack.shape))
    there = np.isfinite(stack)
    total = (by_training * (by_pair @ np.where(there, stack, 0.0).T)).sum(1)
    count = (by_training * (by_pair @ there.T.astype(np.float64))).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1e-9), np.nan)


@lru_cache(maxsize=8)
def _weights(n: int, resamples: int, seed: int) -> Array:
    """How often each of n was drawn in each resample, (resamples, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64)


def p_value(values: Sequence[Array], resamples: int, seed: int) -> float:
    """Two-sided bootstrap p-value that the mean is zero; (b + 1) / (R + 1) on each side (Davison & Hinkley 1997, 4.11)."""
    stack = np.stack(list(values))
    if np.isfinite(stack).sum() < _FEWEST:
        return 1.0
    drawn = _resampled_means(stack, resamples, seed)
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (resamples + 1))


def outcome(
    trained: Mapping[str, Sequence[Effects]],
    untrained: Mapping[str, Effects],
    least: float,
    resamples: int,
    seed: int,
) -> Outcome:
    """Compose the outcome of trained networks by model, one for each training seed, and an untrained one of each model."""
    records: list[dict[str, Any]] = []
    answers: list[str] = []
    for model, several in trained.items():
        rows = _records(model, several, untrained.get(model), least, resamples, seed)
        records += rows
        answers.append(_answer(model, rows))
    return Outcome(
        question="Which layers decide that an image holds substructure, and are they the physical channels?",
        answers=answers,
        cannot_tell=[
            "A share below one may mean that a layer carries little, or that other routes carry the same; both directions "
            "together bound it, neither measures a causal effect outside this pair of images.",
            "Patched activations are ones that no image may produce; what a network makes of them is not what it makes of "
            "images. The donors of another image show how much that alone does.",
            "With one training seed the intervals hold the pairs' scatter only; what another training would give is not in "
            "them.",
            f"A model whose logit difference stays below {least:g} on nearly all pairs decides nothing that could be located.",
            "Each image of a pair is fitted by itself, so that the fit's parameters differ a little between the two as well.",
        ],
        records=records,
        controls={
            "self_patch": "largest change of a logit by a layer's own activation; exactly 0",
            "all_layers": "share recovered with every layer patched; exactly 1",
            "same_class_donor": "the activation of another image without substructure; about 0",
            "shuffled_donor": "that of another image with substructure of the same kind; below denoising where the layer "
            "carries this image's substructure, equal where it carries the class alone",
            "random_init": "the same network untrained, shares of its own logit difference: what the wiring alone gives",
            "logit_difference_random_init": "logits between clean and corrupt of the untrained network",
            "mirrored": "a region as large as that around the substructure, on the lens's other side",
        },
    )


def _records(
    model: str, several: Sequence[Effects], untrained: Effects | None, least: float, resamples: int, seed: int
) -> list[dict[str, Any]]:
    layers, first = several[0].layers, several[0]

    def row(values: Sequence[Array], layer: str, part: str, quantity: str) -> dict[str, Any]:
        return record(*interval(values, resamples, seed), model=model, layer=layer, part=part, quantity=quantity)

    whole = [e.clean - e.corrupt for e in several]
    excluded = int(sum((np.abs(d) < least).sum() for d in whole))
    total = sum(len(d) for d in whole)
    exact: dict[str, Any] = {"model": model, "layer": "all", "part": "all"}
    largest = max(e.largest_self for e in several)
    rows = [
        row(whole, "all", "all", "logit_difference"),
        record(excluded, float("nan"), float("nan"), total, **exact, quantity="excluded_pairs"),
        record(
            largest,
            float("nan"),
            float("nan"),
            len(several) * min(_CHUNK, len(first.clean)),
            **exact,
            quantity="self_patch",
        ),
        row([_share(e, e.all_layers, least) for e in several], "all", "all", "all_layers"),
    ]
    if untrained is not None:
        rows.append(row([untrained.clean - untrained.corrupt], "all", "all", "logit_difference_random_init"))
    for quantity in ("denoising", "noising", "same_class_donor", "shuffled_donor"):
        rows += [
            row([recovered(e, quantity, layer.name, least) for e in several], layer.name, layer.part, quantity)
            for layer in layers
        ]
    if untrained is not None:
        rows += [
            row([recovered(untrained, "denoising", layer.name, least)], layer.name, layer.part, "random_init")
            for layer in layers
        ]
    raw = []
    for layer in layers:
        beyond = []
        for e in several:
            control = recovered(e, "same_class_donor", layer.name, least)
            beyond.append(recovered(e, "denoising", layer.name, least)[: len(control)] - control)
        raw.append(p_value(beyond, resamples, seed))
    for layer, p in zip(layers, holm(raw), strict=True):
        about: dict[str, Any] = {"model": model, "layer": layer.name, "part": layer.part, "quantity": "p_holm"}
        rows.append(record(p, float("nan"), float("nan"), len(first.patched["same_class_donor", layer.name]), **about))
    for (group, region), values in first.patched.items():
        if group in SPATIAL:
            shares = [recovered(e, group, region, least) for e in several]
            labels: dict[str, Any] = {"model": model, "layer": group, "part": "region", "quantity": region}
            rows.append(record(*interval(shares, resamples, seed), **labels))
            area = {"model": model, "layer": group, "part": "region", "quantity": f"area_{region}"}
            rows.append(record(first.area[region], float("nan"), float("nan"), len(values), **area))
    return rows


def _answer(model: str, rows: Sequence[Mapping[str, Any]]) -> str:
    found = {(row["layer"], row["quantity"]): row for row in rows}

    def share(layer: str, quantity: str = "denoising") -> str:
        row = found[layer, quantity]
        return f"{row['value']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"

    excluded = found["all", "excluded_pairs"]
    if found["all", "all_layers"]["value"] is None:
        return f"{model}: {excluded['value']:.0f} of {excluded['n']} pairs leave its logits as they are; there is no decision to locate."
    inner = [row for row in rows if row["quantity"] == "denoising" and row["part"] not in ("input", "logits")]
    best = sorted(inner, key=lambda row: -row["value"])[:3]
    text = f"{model} ({excluded['value']:.0f} of {excluded['n']} pairs excluded): the layers that restore most of the logit difference are "
    text += ", ".join(f"{row['layer']} {share(row['layer'])}" for row in best)
    physics = [row for row in inner if row["layer"] in PHYSICS + HEAD_PHYSICS]
    if not physics:
        return text + "."
    strongest = max(physics, key=lambda row: row["value"])
    text += f". Of the physical channels {strongest['layer']} restores most, {share(strongest['layer'])}"
    if ("convergence", "denoising") in found:
        text += f"; the convergence restores {share('convergence')}, and without it {share('convergence', 'noising')} is lost"
    verdict = (
        "The physical channels decide" if strongest["ci_low"] > 0.5
        else "The physical channels carry a part" if strongest["ci_low"] > 0.1
        else "The physical channels do not decide"
    )  # fmt: skip
    group = next((name for name in ("maps_of_the_fit", "image") if (name, "substructure") in found), None)
    place = (
        f" Patching the {group.replace('_', ' ')} only around the true substructure restores {share(group, 'substructure')}, in a "
        f"region of the same size on the opposite side {share(group, 'mirrored')}, on the ring {share(group, 'ring')}, elsewhere "
        f"{share(group, 'elsewhere')}."
        if group else ""
    )  # fmt: skip
    return f"{text}. {verdict}.{place}"


def run(params: Parameters, inputs: Inputs) -> tuple[Outcome, list[Drawing]]:
    """Patch every training of every arm, and one untrained network of each."""
    arms = inputs.arms(params.arms)
    clean, corrupt = pairs(params.pairs, params.seed, arms[0].observation)
    trained, fresh = {}, {}
    for arm in arms:
        trained[arm.name] = [measure(network, clean, corrupt, params.controls) for network in arm.networks]
        untrained = arm.untrained(params.seed)
        fresh[arm.name] = measure(untrained, clean, corrupt, params.controls, only_denoising=True)
    found = outcome(trained, fresh, params.min_difference, params.bootstrap, params.seed)
    share = "share of the logit difference"
    return found, [
        intervals(
            "layers",
            "Logit difference recovered by each layer",
            "Share of the logit difference between the image with substructure and without that one layer's activation brings "
            "back (denoising) or takes away (noising), with 95 % intervals over pairs, and the controls.",
            [r for r in found.records if r["quantity"] in DRAWN],
            ("model", "layer", "quantity"),
            share,
            marks=(0, 1),
        ),
        intervals(
            "regions",
            "Logit difference recovered by each region",
            "The same with a map patched within one region only: the ring, around the true substructure, as far on the other "
            "side, and everywhere else.",
            [r for r in found.records if r["part"] == "region" and r["quantity"] in REGIONS],
            ("model", "quantity", "layer"),
            share,
            marks=(0, 1),
        ),
    ]


STUDY = Study("Interpretability: patching", Parameters, ("networks",), run)
