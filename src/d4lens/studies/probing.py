"""Linear probes: what can be read off each layer by a straight line, and how much of that the probe itself supplies.

A probe is a ridge regression on a fixed random projection of the layer to the same number of dimensions everywhere (Alain
& Bengio 1610.01644), its penalty chosen on validation images. Beside each score stands that of a control task (Hewitt &
Liang 1909.03368): random targets, one for each image and its whole orbit, scored on another view of the images they were
learnt from, which tells how much a probe of this size memorises. Selectivity is the difference. Voita & Titov 2003.12298
warn that a probe's score alone cannot tell a representation's content from the probe's own strength; hence the untrained
networks and the raw pixels beside it. What can be read off a layer need not be used by the network: nothing here is causal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import t as student
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from d4lens.classes import CLASSES
from d4lens.lensing import d4
from d4lens.models.batch import LensBatch
from d4lens.params import Count, ParameterGroup, Seed
from d4lens.progress import progress
from d4lens.studies.error_bars import intervals
from d4lens.studies.layers import capture, layers_of
from d4lens.studies.networks import untrained
from d4lens.studies.outcome import Outcome, record
from d4lens.studies.samples import Samples, simulate
from d4lens.studies.study import Drawing, Inputs, Study

Array = NDArray[np.float64]

TARGETS = ("class", "theta_E", "shear", "mass_sphere", "mass_vort", "position")
PIXELS = "pixels"
"""The name of the raw input among a network's layers: its maps, pooled and projected as any layer."""
_PENALTIES = (1e-1, 1e1, 1e3, 1e5)
_POOLED = 5  # cells a side to which a map is pooled
_SHARES = (0.6, 0.2)  # of the images to train and to choose the penalty on; the rest tests
_VIEWS = 2  # of each image's orbit: as it is, and under one other element
_CHUNK = 64


class Parameters(ParameterGroup):
    """Group `probing`."""

    arms: Annotated[list[str], Field(min_length=1)]
    twin: str
    images: Annotated[int, Field(ge=30)]
    dimension: Count
    splits: Annotated[int, Field(ge=2)]
    seed: Seed


@dataclass(frozen=True)
class Views:
    """V views of each of B images: the batch (V B of everything, view by view), targets (V B, ...), and who they are of.

    targets: by name of TARGETS, (V B, d) with NaN where an image has none. image: (V B,) index of the image.
    """

    batch: LensBatch
    targets: dict[str, Array]
    image: NDArray[np.int64]


def views(samples: Samples, seed: int) -> Views:
    """Each image as it is and under one random other element of D4, targets turned with it."""
    generator = np.random.default_rng(seed)
    n = len(samples)
    elements = np.concatenate([[np.zeros(n, np.int64)], generator.integers(1, 8, (_VIEWS - 1, n))])
    tables = [_targets(samples, chosen) for chosen in elements]
    batches = []
    for chosen in elements:
        batches += [samples.rows(slice(i, i + 1)).turned(int(g)) for i, g in enumerate(chosen)]
    return Views(
        LensBatch.joined(batches),
        {name: np.concatenate([table[name] for table in tables]) for name in TARGETS},
        np.tile(np.arange(n), _VIEWS),
    )


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
def features(network: nn.Module, batch: LensBatch) -> dict[str, Array]:
    """Pool the features of every layer, and of the input's maps under PIXELS.

    Maps are pooled by mean and maximum of _POOLED x _POOLED cells, so that both extent and faint peaks remain.

    Parameters
    ----------
    network : nn.Module
        The network.
    batch : LensBatch
        V views of B images.

    Returns
    -------
    dict of str to ndarray
        By layer, (V B, any).
    """
    layers = [layer for layer in layers_of(network) if layer.part != "input"]
    maps = [layer.key for layer in layers_of(network) if layer.part == "input" and layer.kind == "scalar"]
    parts: dict[str, list[Tensor]] = {}
    for start in progress(range(0, len(batch), _CHUNK), desc="features"):
        rows = batch.rows(slice(start, start + _CHUNK))
        found = {PIXELS: torch.stack([rows.need(name) for name in maps], 1)} | capture(network, rows, layers)[1]
        for name, x in found.items():
            parts.setdefault(name, []).append(_pooled(x if x.ndim != 3 else x[:, None]))
    return {name: torch.cat(values).double().numpy() for name, values in parts.items()}


def _pooled(x: Tensor) -> Tensor:
    if x.ndim == 2:
        return x
    side = min(_POOLED, x.shape[-1])
    return torch.cat([F.adaptive_avg_pool2d(x, side), F.adaptive_max_pool2d(x, side)], 1).flatten(1)


def probe(x: Array, seen: Views, dimension: int, seed: int) -> dict[str, tuple[float, float]]:
    """Score each of TARGETS for one layer's features, and a control.

    The class scores as accuracy; anything else as R² of all its components together, of a control at least 0, since a
    probe that does worse than the mean memorises nothing. Images are split, never views: an image's whole orbit stands on
    one side.

    Parameters
    ----------
    x : ndarray
        Features, (V B, any).
    seen : Views
        The images and their targets.
    dimension : int
        Of the random projection.
    seed : int
        Of the split and the projection.

    Returns
    -------
    dict of str to tuple
        Score and control score by target.
    """
    generator = np.random.default_rng(seed)
    n = int(seen.image.max()) + 1
    order = generator.permutation(n)
    ends = np.cumsum([round(share * n) for share in _SHARES])
    role = np.empty(n, np.int64)
    for i, members in enumerate(np.split(order, ends)):
        role[members] = i
    role = role[seen.image]
    scale = x[role == 0].std(0)
    x = (x - x[role == 0].mean(0)) / np.where(scale > 1e-12, scale, np.inf)
    projection = np.random.default_rng([seed, x.shape[1]]).standard_normal((x.shape[1], dimension))
    z = x @ projection / np.sqrt(x.shape[1])
    first = np.arange(len(x)) < n
    shuffled = generator.permutation(n)
    found = {}
    for name in TARGETS:
        y = seen.targets[name]
        there = np.isfinite(y).all(1)
        train, choose, test = (there & (role == i) for i in range(3))
        score = _accuracy if name == "class" else _r2
        if min(train.sum(), choose.sum(), test.sum()) < 2:
            found[name] = float("nan"), float("nan")
            continue
        fits = [Ridge(alpha=penalty).fit(z[train], y[train]) for penalty in _PENALTIES]
        best = max(fits, key=lambda fit: score(y[choose], fit.predict(z[choose]).reshape(-1, y.shape[1])))
        value = score(y[test], best.predict(z[test]).reshape(-1, y.shape[1]))
        # The control: targets shuffled among the images, learnt on one view of an image and tested on another.
        mixed = _shuffled(y, there[:n], shuffled)[seen.image]
        learnt = Ridge(alpha=best.alpha).fit(z[train & first], mixed[train & first])
        asked = train & ~first
        control = score(mixed[asked], learnt.predict(z[asked]).reshape(-1, y.shape[1]))
        found[name] = value, max(control, 0.0)
    return found


def _shuffled(y: Array, there: NDArray[np.bool_], order: NDArray[np.int64]) -> Array:
    """Targets (B, d) of the first view of each image, shuffled among the images that have one."""
    given = np.full((len(there), y.shape[1]), np.nan)
    given[np.flatnonzero(there)] = y[: len(there)][[i for i in order if there[i]]]
    return given


def _accuracy(y: Array, predicted: Array) -> float:
    return float((y.argmax(1) == predicted.argmax(1)).mean())


def _r2(y: Array, predicted: Array) -> float:
    rest, spread = ((y - predicted) ** 2).sum(), ((y - y.mean(0)) ** 2).sum()
    return float(1 - rest / spread) if spread > 0 else float("nan")


def records(
    model: str, state: str, found: Mapping[str, Array], seen: Views, dimension: int, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of one network: by layer and target the score, its control and the selectivity over splits and projections."""
    rows = []
    for layer, x in progress(found.items(), len(found), f"probes of {model}, {state}"):
        runs = [probe(x, seen, dimension, seed) for seed in seeds]
        for target in TARGETS:
            n = int(np.isfinite(seen.targets[target]).all(1)[: seen.image.max() + 1].sum())
            values = np.array([run[target] for run in runs])
            for quantity, series in (
                ("score", values[:, 0]),
                ("control", values[:, 1]),
                ("selectivity", values[:, 0] - values[:, 1]),
            ):
                labels: dict[str, Any] = {
                    "model": model,
                    "state": state,
                    "layer": layer,
                    "target": target,
                    "quantity": quantity,
                }
                rows.append(record(*over_seeds(series), n, **labels))
    return rows


def over_seeds(values: Array) -> tuple[float, float, float]:
    """Mean and 95 % interval of the mean over splits by Student's t: how far another split would move the value."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan")), float("nan"), float("nan")
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return float(values.mean()), float(values.mean()) - half, float(values.mean()) + half


def outcome(rows: Sequence[Mapping[str, Any]], dimension: int, twin: str) -> Outcome:
    """Compose the study's outcome from the rows of `records` of all networks; `twin` is the arm with the plain U-Net."""
    models = list(dict.fromkeys(r["model"] for r in rows))
    trained = [m for m in models if any(r["model"] == m and r["state"] == "trained" for r in rows)]
    answers = [_best(rows, target, trained) for target in TARGETS]
    if twin in trained and "d4lenspinn" in trained:
        for target in ("theta_E", "position"):
            depth = {m: _reached(rows, m, target) for m in ("d4lenspinn", twin)}
            answers.append(
                f"{target} reaches nine tenths of its best score at layer {depth['d4lenspinn']} of d4lenspinn and at layer "
                f"{depth[twin]} of its plain twin."
            )
    else:
        answers.append(
            f"Whether equivariant layers hold physical quantities earlier than plain ones cannot be told here: the plain-U-Net "
            f"twin ({twin}) is not trained in this profile."
        )
    return Outcome(
        question="Which physical quantities can be read off each layer by a straight line, and earlier where it is equivariant?",
        answers=answers,
        cannot_tell=[
            "What can be read off a layer need not be used by the network.",
            f"A quantity that needs more than a straight line, or more than {dimension} random directions, is missed.",
            "The intervals are over splits and projections of the same images and one training; splits share images, so that "
            "they are narrower than those over new images would be.",
            "A control score well above chance means that the probe memorises; compare selectivity, and only at equal dimension.",
        ],
        records=list(rows),
        controls={
            "control": "targets shuffled among the images, learnt on one view and tested on another: what the probe memorises",
            "untrained": "the same network before training",
            PIXELS: "the maps the network reads, pooled and projected as any layer",
            "class": "accuracy; a third is chance",
        },
    )


def _scores(rows: Sequence[Mapping[str, Any]], model: str, target: str, state: str) -> list[Mapping[str, Any]]:
    wanted = {"model": model, "target": target, "state": state, "quantity": "score"}
    return [r for r in rows if all(r[key] == value for key, value in wanted.items()) and r["value"] is not None]


def _best(rows: Sequence[Mapping[str, Any]], target: str, trained: Sequence[str]) -> str:
    """Say in a sentence the best layer for a target of each trained network, the untrained one's best, and the pixels."""
    parts = []
    for model in trained:
        found = {state: _scores(rows, model, target, state) for state in ("trained", "untrained")}
        inner = {state: [r for r in several if r["layer"] != PIXELS] for state, several in found.items()}
        if not inner["trained"]:
            continue
        best = max(inner["trained"], key=lambda r: r["value"])
        text = f"{model} {best['value']:.2f} [{best['ci_low']:.2f}, {best['ci_high']:.2f}] at {best['layer']}"
        if inner["untrained"]:
            text += f" (untrained at most {max(r['value'] for r in inner['untrained']):.2f}"
            pixels = [r["value"] for r in found["trained"] if r["layer"] == PIXELS]
            text += f", pixels {pixels[0]:.2f})" if pixels else ")"
        parts.append(text)
    measure = "accuracy" if target == "class" else "R²"
    return f"{target} ({measure}): {'; '.join(parts) or 'too few images to tell'}."


def _reached(rows: Sequence[Mapping[str, Any]], model: str, target: str) -> str:
    """Find the first layer at which a target's score is nine tenths of the network's best."""
    found = [r for r in _scores(rows, model, target, "trained") if r["layer"] != PIXELS]
    best = max((r["value"] for r in found), default=0.0)
    return next((r["layer"] for r in found if r["value"] >= 0.9 * best), "none") if best > 0 else "none"


def run(params: Parameters, inputs: Inputs) -> tuple[Outcome, list[Drawing]]:
    """Probe every arm, trained and untrained, and the twin untrained where the profile does not train it."""
    arms = inputs.arms(params.arms)
    observation = arms[0].observation
    seen = views(simulate(params.images, params.seed, observation), params.seed)
    nets = [(arm.name, "trained", arm.networks[0]) for arm in arms]
    nets += [(arm.name, "untrained", arm.untrained(params.seed)) for arm in arms]
    if params.twin not in [arm.name for arm in arms]:
        twin = untrained("d4lenspinn", observation, params.seed, unet_kind="plain_width")
        nets.append((params.twin, "untrained", twin))
    seeds = [params.seed + i for i in range(params.splits)]
    rows = []
    for name, state, network in nets:
        rows += records(name, state, features(network, seen.batch), seen, params.dimension, seeds)
    drawing = intervals(
        "selectivity",
        "What a linear probe reads off each layer",
        "Selectivity (score less control) of the probes on the trained networks, with 95 % intervals over splits and projections; "
        "what lies beyond ±1, as of a probe that predicts worse than a constant, is not drawn.",
        [r for r in rows if r["quantity"] == "selectivity" and r["state"] == "trained"],
        ("model", "layer", "target"),
        "selectivity",
        marks=(0, 1),
        domain=(-1, 1),
    )
    return outcome(rows, params.dimension, params.twin), [drawing]


STUDY = Study("Interpretability: probing", Parameters, ("networks",), run)
