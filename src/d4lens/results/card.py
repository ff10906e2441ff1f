"""The model card: what a file of weights is, what it is for and what it is not, with its measured scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d4lens.inference.pipeline import default_weights
from d4lens.models import weights
from d4lens.results.tables import VIEWS, read_json

FILE = "model-card.md"
"""Its name in docs/ and among a run's artefacts."""
_SHOWN = {
    "auc_macro": "AUC, macro",
    "auc_no": "AUC, no",
    "auc_sphere": "AUC, sphere",
    "auc_vort": "AUC, vort",
    "accuracy": "accuracy",
    "recall_no": "recall, no",
    "recall_sphere": "recall, sphere",
    "recall_vort": "recall, vort",
    "ece": "expected calibration error",
}


def of_package(metrics: str | Path) -> str:
    """The card of the weights that ship with the package, scored in the folder metrics/.

    Raises D4LensError where the weights or their profile's evaluation cannot be read.
    """
    _, description = weights.read(default_weights())
    return of(description, description["profile"], metrics)


def of(description: Mapping[str, Any], profile: str, metrics: str | Path) -> str:
    """The card of a training of `profile`: `description` is its weights' own, the scores those of its evaluation."""
    name = f"{description['name']}-{description['seed']}"
    return text(description, profile, read_json(Path(metrics) / profile / "evaluation" / f"{name}.json"))


def text(description: Mapping[str, Any], profile: str, scores: Mapping[str, Any]) -> str:
    """Markdown of a description and an evaluation: {"n_train", "n_test", "plain": metrics, "tta": metrics}."""
    seen = description["observation"]
    rows = [
        f"| {shown} | {' | '.join(_interval(scores[view][name]) for view in VIEWS)} |" for name, shown in _SHOWN.items()
    ]
    versions = ", ".join(f"{name} {number}" for name, number in sorted(description["versions"].items()))
    return f"""# Model card: {description["name"]}

Tells from one image of a strong gravitational lens whether its substructure is absent (`no`), subhalos of cold dark
matter (`sphere`) or a vortex of superfluid dark matter (`vort`). {description["n_parameters"]:,} parameters, classes in the order
{", ".join(f"`{name}`" for name in description["classes"])}.

| | |
|---|---|
| training | profile `{profile}`, seed {description["seed"]}, epoch {description["epoch"]}, fingerprint `{description["fingerprint"][:16]}` |
| input | {seen["n_pixels"]} × {seen["n_pixels"]} pixels of {seen["pixel_scale"]:g} arcsec, photon counts; Gaussian PSF of {seen["psf_sigma"]:g} arcsec, sky {seen["sky"]:g} counts a pixel |
| output | three probabilities, and the convergence it blames |
| packages | {versions} |
| licence | MIT, weights and code |

## Measured

On {scores["n_test"]:,} test images of the simulation it was trained on, touched once; brackets are 95 % bootstrap intervals over images.

| | one view | mean of eight views |
|---|---:|---:|
{chr(10).join(rows)}

The package's weights also label 15 of 15 genuine images of the published set right (`tests/inference/test_pipeline.py`); fifteen
images bound the accuracy there from below by 0.78 only (95 %, exact).

## Training data

{scores["n_train"]:,} images of the preset `deeplense` of this project's simulator, the twin of the published DeepLense set: a singular
isothermal sphere with external shear, a Sérsic source, Poisson counts; 25 point masses or one rod as substructure
([DATA.md](../DATA.md)). No genuine image was used for training or for choosing an epoch or an arm; the package keeps the
network of profile quick, though, since the one trained on 27,000 images labels 14 of the fifteen right. The simulator's own constants were
found by fitting genuine images of the published set, and the fifteen above may be among those: what they test is that a
network carries over from simulation, not that the simulation was made without knowing them.

## Intended use

Research and teaching on images like those of training: one galaxy-scale lens, one band, lens light absent or
subtracted, noise that is Poisson's, the pixel scale and PSF above. `d4lens predict` fits a smooth lens first and gives its
`chi2`; an answer with a `flag` should not be used. It gives no label at all, only the probabilities, where the smooth fit did
not converge, ended at its bound, or saw too little of the ring (`--force-label` overrides). An empty flag is no clearance: most
wrong assumptions leave a chi2 within the range of real substructure, and only the mean over many images tells
([your-images.md](your-images.md)); how often an answer is wrong and unflagged is measured in
[reliability.md](reliability.md#wrong-and-unflagged).

## Limits

- It separates three simulated models. An answer is not evidence for a kind of dark matter in nature: real subhalos are
  no 25 point masses of one mass range, and real lens galaxies are no isothermal spheres.
- Whatever else a smooth lens does not explain (a companion galaxy, a wrong PSF, dust, a misaligned band) reaches the
  network as if it were substructure.
- Masses too small or too far from the arcs to leave a trace are answered `no`: `no` means “not seen”.
- Probabilities are calibrated on the training simulation with equal classes; elsewhere, and with other class shares,
  they are not.
- Measured: what it sees and misses of weak substructure, and how it answers on images it was not made for, in
  [the README](../README.md#how-near-the-limit); what it does inside, in [INTERPRETABILITY.md](../INTERPRETABILITY.md).

## To make it again

`make reproduce PROFILE={profile}` trains it, `make ship PROFILE={profile}` puts it into the package and renews this card.
"""


def _interval(measured: Mapping[str, float]) -> str:
    return f"{measured['value']:.4f} [{measured['low']:.4f}, {measured['high']:.4f}]"
