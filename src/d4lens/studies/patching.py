"""Activation patching: which layers carry the decision from an image with substructure to the same image without.

Two runs of one network on a pair of images that differ in the substructure alone; the activation of one layer is taken
from one run into the other. Denoising puts the clean (with substructure) activation into the corrupt run and asks what
share of the logit difference comes back: is the layer sufficient? Noising puts the corrupt one into the clean run and
asks what share is lost: is it necessary? Zhang & Nanda 2309.16042 (the logit difference as the measure), Heimersheim &
Nanda 2404.15255 (both directions, and what a control must be). Path patching (Goldowsky-Dill et al. 2304.05969) lets one
input channel of the head follow a U-Net that sees the clean image, and leaves all else corrupt: by which channel does the
U-Net's answer reach the head?

What a layer of an untrained network gives back is the wiring's share, so that every trained share stands beside it. Nothing
is claimed of a network that hardly tells the images of a pair apart, or from few pairs. A layer that carries nothing is shown
to by two one-sided tests (Schuirmann 1987): a large p-value would show nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from d4lens.models.batch import LensBatch
from d4lens.params import Count, Fraction, ParameterGroup, Positive, Seed
from d4lens.progress import with_progress
from d4lens.results import metrics
from d4lens.results.outcome import Outcome, record
from d4lens.studies.error_bars import interval_drawing
from d4lens.studies.layers import Layer, blended, capture, layers_of, outputs, run_edited
from d4lens.studies.samples import Samples, distance, pairs, radius
from d4lens.studies.study import Drawing, Inputs, Study

Array = NDArray[np.float64]

REGIONS = ("whole", "ring", "substructure", "mirrored", "elsewhere")
"""Where a map is patched: everywhere; on the ring; around the true substructure; as far on the lens's other side, which is
as large; on all that is neither ring nor substructure."""
SPATIAL = {"maps_of_the_fit": ("residual", "significance"), "image": ("counts",), "convergence": ("convergence",)}
PHYSICS_STEPS = ("convergence", "deflection", "source")
HEAD_PHYSICS = tuple(f"head.{name}" for name in ("kappa", "psi", "alpha_x", "alpha_y", "source", "unexplained"))
DRAWN = ("denoising", "noising", "same_class_donor", "shuffled_donor", "random_init")
WIRING = {"denoising": "random_init", "noising": "random_init_noising", "path": "random_init_path"} | {
    region: f"random_init_{region}" for region in REGIONS
}
"""What is measured of untrained networks too, and by what name."""
_REACH = 0.5  # arcsec to either side of the ring, and around the substructure
_CHUNK = 40
_DONOR_SHIFT = 2  # sphere and vortex take turns, so two places further stands the same class
_FEWEST = 10  # pairs below which a training gives no share
_SMALL = 0.1  # of its median logit difference, below which an untrained network's pair is left out
_LEVEL = 0.05  # of the tests


class Parameters(ParameterGroup):
    """Group `patching`."""

    arms: Annotated[list[str], Field(min_length=1)]
    pairs: Annotated[int, Field(ge=2)]
    controls: Annotated[int, Field(ge=2)]
    min_difference: Positive
    least_pairs: Count
    least_auc: Fraction
    margin: Positive
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


@dataclass(frozen=True)
class Effects:
    """Logit differences of P pairs in one network: the substructure's class minus `no`, in logits.

    patched: by condition and layer (or map and region), (P,), or fewer for a control; `path` of the head's inputs, of all of
    them (`head`) and of all that the U-Net reaches (`unet`). largest_self: the largest change
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
def measure_effects(
    network: nn.Module, clean: Samples, corrupt: Samples, controls: int, untrained: bool = False
) -> Effects:
    """Patch every layer of a network both ways over all pairs, and some maps region by region.

    Parameters
    ----------
    network : nn.Module
        The network.
    clean, corrupt : Samples
        As `samples.pairs` gives them.
    controls : int
        Pairs, from the first on, for the donors that should do nothing (another image of the corrupt class) or little
        (another pair's clean image).
    untrained : bool
        Whether to leave out these donors, and all pairs but the first `controls`.

    Returns
    -------
    Effects
        What patching moved.
    """
    layers, n = layers_of(network), controls if untrained else len(clean)
    heads = [layer for layer in layers if layer.part == "head" and layer.place == "input"]
    masks = regions(clean)
    parts: dict[tuple[str, str], list[Tensor]] = {}
    ends: dict[str, list[Tensor]] = {"clean": [], "corrupt": [], "all": []}
    largest_self = 0.0
    for start in with_progress(range(0, n, _CHUNK), desc="patching"):
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

            new = {
                "denoising": patch(without, a_clean[layer.name], before["corrupt"]),
                "noising": patch(with_, a_corrupt[layer.name], before["clean"]),
            }
            if not untrained and start < controls:
                for name, donors in (("same_class_donor", a_corrupt), ("shuffled_donor", a_clean)):
                    new[name] = patch(without, donors[layer.name].roll(_DONOR_SHIFT, 0), before["corrupt"])
            if start == 0:
                own = patch(without, a_corrupt[layer.name], before["corrupt"])
                largest_self = max(largest_self, float((own - l_corrupt).abs().max()))
            for name, logits in new.items():
                parts.setdefault((name, layer.name), []).append(difference(logits))
        for group, chosen in _spatial(layers).items():
            for region in REGIONS:
                mask = masks[region][rows]
                edits = {layer: blended(a_clean[layer.name], mask) for layer in chosen}
                parts.setdefault((group, region), []).append(difference(run_edited(network, without, edits)))
        if "unet" in fixed["clean"]:
            for name, logits in _paths(network, without, fixed["clean"]["unet"], heads, fixed["corrupt"]).items():
                parts.setdefault(("path", name), []).append(difference(logits))
    joined = {key: torch.cat(values).numpy() for key, values in parts.items()}
    whole = {name: torch.cat(values).numpy() for name, values in ends.items()}
    area = {region: float(mask.double().mean()) for region, mask in masks.items()}
    return Effects(layers, whole["clean"], whole["corrupt"], joined, whole["all"], largest_self, area)


def _paths(
    network: nn.Module, batch: LensBatch, drawn: Any, heads: Sequence[Layer], fixed: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Logits where a head input, all of them (`head`) or the whole network (`unet`) follows a U-Net that has returned `drawn`."""
    whole, routed = capture(network, batch, heads, {"unet": drawn})
    before = {key: fixed[key] for key in heads[0].untouched}
    edits = {layer: blended(routed[layer.name]) for layer in heads}
    found = {layer.name: run_edited(network, batch, {layer: edit}, before) for layer, edit in edits.items()}
    return found | {"head": run_edited(network, batch, edits, before), "unet": whole}


def regions(samples: Samples) -> dict[str, Tensor]:
    """Make the masks of REGIONS.

    Parameters
    ----------
    samples : Samples
        B images with substructure.

    Returns
    -------
    dict of str to Tensor
        (B, N, N) bool by name of REGIONS.
    """
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
        One of the conditions of `measure_effects`.
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


def mean_interval(values: Sequence[Array], resamples: int, seed: int) -> tuple[float, float, float, int]:
    """Bound a mean over trainings and pairs by its 95 % interval, as `metrics.drawn_means` resamples them.

    Parameters
    ----------
    values : sequence of ndarray
        A row (P,) for each training; NaN counts as missing. A training with fewer than ten values is left out.
    resamples : int
        How often they are drawn.
    seed : int
        Of the draws.

    Returns
    -------
    tuple
        Mean, lower and upper end, number of values; all but the last NaN if no training has ten.
    """
    kept = _enough(values)
    n = int(sum(np.isfinite(row).sum() for row in values))
    if not len(kept):
        return float("nan"), float("nan"), float("nan"), n
    low, high = metrics.interval(metrics.drawn_means(kept, resamples, seed))
    return float(np.nanmean(kept, 1).mean()), low, high, n


def _enough(values: Sequence[Array]) -> Array:
    return np.array([row for row in values if np.isfinite(row).sum() >= _FEWEST])


def p_value(values: Sequence[Array], resamples: int, seed: int) -> float:
    """Test that the mean is zero by a two-sided bootstrap; (b + 1) / (R + 1) on each side (Davison & Hinkley 1997, 4.11).

    Parameters
    ----------
    values : sequence of ndarray
        Of each training the values of the pairs, NaN where there is none.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    float
        The p-value; 1 without ten values.
    """
    kept = _enough(values)
    if not len(kept):
        return 1.0
    return metrics.two_sided(metrics.drawn_means(kept, resamples, seed))


def equivalence_bound(values: Sequence[Array], resamples: int, seed: int) -> float:
    """Find the smallest margin within which the mean is zero by two one-sided tests at 5 %.

    It is the end of the 90 % interval that lies further from zero.

    Parameters
    ----------
    values : sequence of ndarray
        Of each training the values of the pairs, NaN where there is none.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    float
        The margin, infinite without ten values.
    """
    kept = _enough(values)
    if not len(kept):
        return float("inf")
    return max(map(abs, metrics.interval(metrics.drawn_means(kept, resamples, seed), 1 - 2 * _LEVEL)))


def auc(several: Sequence[Effects], resamples: int, seed: int) -> tuple[float, float, float, int]:
    """Measure how well the logit difference tells clean from corrupt images.

    Parameters
    ----------
    several : sequence of Effects
        One of each training.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    value, low, high : float
        AUC, and the ends of its interval over trainings and pairs.
    images : int
        Number of images.
    """
    n = len(several[0].clean)
    weights = metrics.image_weights(n, resamples, seed)
    values, drawn = [], []
    for e in several:
        above = np.heaviside(e.clean[:, None] - e.corrupt, 0.5)
        values.append(above.mean())
        drawn.append(((weights @ above) * weights).sum(1) / n**2)
    value = float(np.mean(values))
    low, high = metrics.auc_interval(value, metrics.over_trainings(np.array(drawn), (seed, *range(len(drawn)))), n)
    return value, low, high, 2 * n


def summarise(
    trained: Mapping[str, Sequence[Effects]], untrained: Mapping[str, Sequence[Effects]], params: Parameters
) -> Outcome:
    """Compose the study's outcome.

    Parameters
    ----------
    trained, untrained : mapping of str to sequence of Effects
        By arm, those of its trainings and of as many untrained networks.
    params : Parameters
        The study's group.

    Returns
    -------
    Outcome
        The outcome.
    """
    records: list[dict[str, Any]] = []
    answers: list[str] = []
    for arm, several in trained.items():
        rows = _records(arm, several, untrained.get(arm, ()), params)
        records += rows
        answers.append(_answer(arm, rows, params))
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
            f"Of a network with fewer than {params.least_pairs} pairs whose logits differ by {params.min_difference:g} or more, or with an "
            f"AUC of at most {params.least_auc:g} between the images of the pairs, nothing is claimed: its shares are shares of little.",
            "An untrained network's shares are of its own logit difference, however small; they tell the wiring, not a decision.",
            "Each image of a pair is fitted by itself, so that the fit's parameters differ a little between the two as well.",
        ],
        records=records,
        controls={
            "self_patch": "largest change of a logit by a layer's own activation; exactly 0",
            "all_layers": "share recovered with every layer patched; exactly 1",
            "same_class_donor": "the activation of another image without substructure; about 0",
            "shuffled_donor": "that of another image with substructure of the same kind; below denoising where the layer "
            "carries this image's substructure, equal where it carries the class alone",
            "random_init": "the same network untrained, shares of its own logit difference: what the wiring alone gives; so for "
            "noising, the regions and the paths",
            "logit_difference_random_init": "logits between clean and corrupt of the untrained networks",
            "equivalence_bound": "denoising less the same-class donor is smaller than this, by two one-sided tests at 5 %; a layer "
            f"below {params.margin:g} carries nothing and has no p_holm",
            "mirrored": "a region as large as that around the substructure, on the lens's other side",
            "path": "0 at an input of the head that does not come from the U-Net",
        },
    )  # fmt: skip


def _records(
    arm: str, several: Sequence[Effects], untrained: Sequence[Effects], params: Parameters
) -> list[dict[str, Any]]:
    layers, first = several[0].layers, several[0]
    least, given = params.min_difference, (params.bootstrap, params.seed)
    nothing = float("nan")

    def row(values: Sequence[Array], layer: str, part: str, quantity: str, **more: Any) -> dict[str, Any]:
        return record(*mean_interval(values, *given), arm=arm, layer=layer, part=part, quantity=quantity, **more)

    def wiring(condition: str, layer: str, part: str, quantity: str) -> list[dict[str, Any]]:
        if not untrained:
            return []
        smallest = [min(least, _SMALL * float(np.median(np.abs(e.clean - e.corrupt)))) for e in untrained]
        shares = [recovered(e, condition, layer, own) for e, own in zip(untrained, smallest, strict=True)]
        name = layer if condition not in SPATIAL else condition
        return [row(shares, name, part, WIRING[quantity])]

    whole = [e.clean - e.corrupt for e in several]
    excluded = int(sum((np.abs(d) < least).sum() for d in whole))
    able = auc(several, *given)
    fewest = min(int((np.abs(d) >= least).sum()) for d in whole)
    exact: dict[str, Any] = {"arm": arm, "layer": "all", "part": "all"}
    largest, looked_at = max(e.largest_self for e in several), len(several) * min(_CHUNK, len(first.clean))
    rows = [
        row(whole, "all", "all", "logit_difference"),
        record(*able, **exact, quantity="auc"),
        record(excluded, nothing, nothing, sum(len(d) for d in whole), **exact, quantity="excluded_pairs"),
        record(largest, nothing, nothing, looked_at, **exact, quantity="self_patch"),
        row([_share(e, e.all_layers, least) for e in several], "all", "all", "all_layers"),
    ]
    if untrained:
        rows.append(row([e.clean - e.corrupt for e in untrained], "all", "all", "logit_difference_random_init"))
    bounds, raw = {}, {}
    for layer in layers:
        beyond = []
        for e in several:
            control = recovered(e, "same_class_donor", layer.name, least)
            beyond.append(recovered(e, "denoising", layer.name, least)[: len(control)] - control)
        bounds[layer.name] = equivalence_bound(beyond, *given), int(sum(np.isfinite(b).sum() for b in beyond))
        raw[layer.name] = p_value(beyond, *given)
    corrected = dict(zip(raw, metrics.holm(list(raw.values())), strict=True))
    refused = _refused(fewest, able[0], params)
    for quantity in ("denoising", "noising", "same_class_donor", "shuffled_donor"):
        for layer in layers:
            shares = [recovered(e, quantity, layer.name, least) for e in several]
            claim = {}
            if quantity == "denoising":
                null = bounds[layer.name][0] < params.margin
                found = "nothing" if null else "carries" if corrected[layer.name] < _LEVEL else "undecided"
                claim = {"claim": refused or found}
            rows.append(row(shares, layer.name, layer.part, quantity, **claim))
    for quantity in ("denoising", "noising"):
        rows += [one for layer in layers for one in wiring(quantity, layer.name, layer.part, quantity)]
    for layer in layers:
        bound, n = bounds[layer.name]
        about: dict[str, Any] = {"arm": arm, "layer": layer.name, "part": layer.part}
        rows.append(record(bound, nothing, nothing, n, **about, quantity="equivalence_bound"))
        if not bound < params.margin:
            rows.append(record(corrected[layer.name], nothing, nothing, n, **about, quantity="p_holm"))
    for (group, name), values in first.patched.items():
        if group == "path":
            part = "head" if name.startswith("head") else "unet"
            rows.append(row([recovered(e, group, name, least) for e in several], name, part, group))
            rows += wiring(group, name, part, group)
        if group in SPATIAL:
            rows.append(row([recovered(e, group, name, least) for e in several], group, "region", name))
            rows += wiring(group, name, "region", name)
            area = {"arm": arm, "layer": group, "part": "region", "quantity": f"area_{name}"}
            rows.append(record(first.area[name], nothing, nothing, len(values), **area))
    return rows


def _refused(pairs: int, able: float, params: Parameters) -> str:
    """Why nothing is claimed of a network's layers, or nothing."""
    if pairs < params.least_pairs:
        return f"no claim: {pairs} pairs, fewer than {params.least_pairs}"
    return f"no claim: AUC {able:.2f}, not above {params.least_auc:g}" if able <= params.least_auc else ""


def _answer(arm: str, rows: Sequence[Mapping[str, Any]], params: Parameters) -> str:
    found = {(row["layer"], row["quantity"]): row for row in rows}

    def text(layer: str, quantity: str = "denoising") -> str:
        row, wired = found[layer, quantity], found.get((layer, WIRING[quantity]))
        said = (
            "undefined" if row["value"] is None else f"{row['value']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
        )
        if wired is None:
            return said
        if wired["value"] is None:
            return f"{said} (untrained undefined)"
        return f"{said} (untrained {wired['value']:.2f} [{wired['ci_low']:.2f}, {wired['ci_high']:.2f}])"

    excluded, able = found["all", "excluded_pairs"], found["all", "auc"]
    begin = (
        f"{arm} tells the images of the pairs apart with AUC {able['value']:.3f} [{able['ci_low']:.3f}, {able['ci_high']:.3f}]; "
        f"{excluded['value']:.0f} of {excluded['n']} pairs are excluded"
    )
    if found["all", "all_layers"]["value"] is None:
        return f"{begin}: there is no decision to locate."
    denoising = [row for row in rows if row["quantity"] == "denoising"]
    if (claim := denoising[0]["claim"]).startswith("no claim"):
        return f"{begin}; {claim}."
    inner = [row for row in denoising if row["part"] not in ("input", "logits")]
    best = sorted(inner, key=lambda row: -row["value"])[:3]
    said = [
        f"{begin}. The layers that restore most of the logit difference are "
        + ", ".join(f"{row['layer']} {text(row['layer'])}" for row in best)
    ]
    null = [row["layer"] for row in inner if row["claim"] == "nothing"]
    said.append(
        f"{len(null)} of {len(inner)} inner layers carry less than {params.margin:g} of it beyond another image's activation"
        + (f": {', '.join(null)}" if null else "")
    )
    physics = [row for row in inner if row["layer"] in PHYSICS_STEPS + HEAD_PHYSICS]
    if physics:
        strongest = max(physics, key=lambda row: row["value"])
        said.append(f"Of the physical channels {strongest['layer']} restores most, {text(strongest['layer'])}")
        if ("convergence", "denoising") in found:
            lost = text("convergence", "noising")
            said.append(f"The convergence restores {text('convergence')}, and without it {lost} is lost")
        wired = found.get((strongest["layer"], WIRING["denoising"]))
        said.append(
            "The physical channels do not decide" if strongest["ci_low"] <= 0.1
            else "No untrained share stands beside it" if wired is None or wired["value"] is None
            else "The wiring alone gives the physical channels that share" if strongest["ci_low"] <= wired["ci_high"]
            else "The physical channels decide" if strongest["ci_low"] > 0.5
            else "The physical channels carry a part"
        )  # fmt: skip
    paths = [row["layer"] for row in rows if row["quantity"] == "path"]
    if paths:
        by = ", ".join(f"{name} {text(name, 'path')}" for name in paths if name not in ("head", "unet"))
        said.append(f"By the path from the U-Net to one input of the head alone come back: {by}")
        said.append(
            f"By all of them come {text('head', 'path')}, by all that follows from the U-Net {text('unet', 'path')}"
        )
    group = next((name for name in ("maps_of_the_fit", "image") if (name, "substructure") in found), None)
    if group:
        said.append(
            f"Patching the {group.replace('_', ' ')} only around the true substructure restores {text(group, 'substructure')}, in a region "
            f"of the same size on the opposite side {text(group, 'mirrored')}, on the ring {text(group, 'ring')}, elsewhere "
            f"{text(group, 'elsewhere')}"
        )
    return ". ".join(said) + "."


def run(params: Parameters, inputs: Inputs) -> tuple[Outcome, list[Drawing]]:
    """Patch every training of every arm, and as many untrained networks of each.

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
        Layers, regions and paths.
    """
    arms = inputs.arms(params.arms)
    clean, corrupt = pairs(params.pairs, params.seed, arms[0].observation)
    trained, fresh = {}, {}
    for arm in arms:
        trained[arm.name] = [measure_effects(network, clean, corrupt, params.controls) for network in arm.networks]
        begun = [arm.untrained(params.seed + i) for i in range(len(arm.networks))]
        fresh[arm.name] = [
            measure_effects(network, clean, corrupt, params.controls, untrained=True) for network in begun
        ]
    found = summarise(trained, fresh, params)
    share = "share of the logit difference"
    return found, [
        interval_drawing(
            "layers",
            "Logit difference recovered by each layer",
            "Share of the logit difference between the image with substructure and without that one layer's activation brings "
            "back (denoising) or takes away (noising), with 95 % intervals over trainings and pairs, and the controls.",
            [r for r in found.records if r["quantity"] in DRAWN],
            ("arm", "layer", "quantity"),
            share,
            marks=(0, 1),
        ),
        interval_drawing(
            "regions",
            "Logit difference recovered by each region",
            "The same with a map patched within one region only: the ring, around the true substructure, as far on the other "
            "side, and everywhere else.",
            [r for r in found.records if r["part"] == "region" and r["quantity"] in REGIONS],
            ("arm", "quantity", "layer"),
            share,
            marks=(0, 1),
        ),
        interval_drawing(
            "paths",
            "Logit difference that reaches the head by each of its inputs",
            "The same where one input of the head follows a U-Net that sees the image with substructure and all else is of the image "
            "without; head: all of its inputs; unet: all that follows from the U-Net. Trained and untrained.",
            [r for r in found.records if r["quantity"] in ("path", WIRING["path"])],
            ("arm", "layer", "quantity"),
            share,
            marks=(0, 1),
        ),
    ]


STUDY = Study("Interpretability: patching", Parameters, ("networks",), run)
