"""The model card: what a file of weights is, what it is for and what it is not, with its measured scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d4lens.classes import VIEWS
from d4lens.errors import D4LensError
from d4lens.files import read_json
from d4lens.inference.pipeline import SURVEY_WEIGHTS, default_weights
from d4lens.models import weights
from d4lens.models.scores import TABLE
from d4lens.results import outcome

FILE = "model-card.md"
"""Its name in docs/ and among a run's artefacts."""
MODEL = "d4lenspinn"
"""The model in MLflow's registry, and the network whose card the package has."""
SHIPPED = (MODEL, "d4lenspinn_every_angle")
"""Arms whose network the package may ship."""
SHIPPED_MARGINAL = ("d4lenspinn_survey",)
"""Those of the network that it ships for the maps of the marginal fit."""


def largest_training(metrics: str | Path, arms: Sequence[str] = SHIPPED) -> dict[str, Any]:
    """Find the evaluation whose network the package ships; no genuine image and no score enters.

    Parameters
    ----------
    metrics : str or Path
        The folder metrics/.
    arms : sequence of str
        Whose evaluations count.

    Returns
    -------
    dict
        Of all evaluations of these arms the one with most training images; among equals that of the lowest seed,
        then of the first profile and arm by name.

    Raises
    ------
    D4LensError
        Without such an evaluation, or where one cannot be read.
    """
    files = [file for arm in arms for file in Path(metrics).glob(f"*/evaluation/{arm}-*.json")]
    if not files:
        raise D4LensError(f"{metrics} holds no evaluation of {arms[0]}; run make reproduce")
    found = [{**read_json(file), "arm": file.stem.rpartition("-")[0]} for file in files]
    return min(found, key=lambda one: (-one["n_train"], one["seed"], one["profile"], one["arm"]))


def of_package(metrics: str | Path) -> str:
    """Write the card of the weights that ship with the package, with a section on those for the marginal fit if it holds them.

    Parameters
    ----------
    metrics : str or Path
        The folder metrics/.

    Returns
    -------
    str
        Markdown.

    Raises
    ------
    D4LensError
        Where the weights or their profile's evaluation cannot be read, or the evaluation is of other weights.
    """
    _, description = weights.read(default_weights())
    largest = largest_training(metrics)
    shipped = (
        "No genuine image enters the choice of the network in the package: it is the one with the most training images, and "
        "among equals the one with the lowest seed."
    )
    trained = description["profile"], _arm(description), description["seed"]
    if trained != tuple(largest[key] for key in ("profile", "arm", "seed")):
        shipped += (
            f"\nThat is profile `{largest['profile']}`, arm `{largest['arm']}`, seed {largest['seed']}, with {largest['n_train']:,} images. Until it is "
            "trained again the package keeps this network."
        )
    card = model_card(description, description["profile"], metrics, shipped)
    if not SURVEY_WEIGHTS.is_file():
        return card
    second = weights.read(SURVEY_WEIGHTS)[1]
    _evaluation(second, second["profile"], metrics)  # which checks it
    return card + _second(second)


def model_card(description: Mapping[str, Any], profile: str, metrics: str | Path, shipped: str = "") -> str:
    """Write the card of one training.

    Parameters
    ----------
    description : Mapping
        What its file of weights says of itself; `arm` where that is not the network's name.
    profile : str
        Where it was trained.
    metrics : str or Path
        The folder metrics/, with its evaluation.
    shipped : str
        Sentences on why the package holds it, if it does.

    Returns
    -------
    str
        Markdown.

    Raises
    ------
    D4LensError
        Where its evaluation or the study of genuine images cannot be read, or the evaluation is of other weights.
    """
    scores = _evaluation(description, profile, metrics)
    genuine = genuine_sentence(description, Path(metrics) / profile / "genuine.json")
    return text(description, profile, scores, genuine, shipped)


def _evaluation(description: Mapping[str, Any], profile: str, metrics: str | Path) -> Any:
    """Return the scores of one training, checked to be of these very weights."""
    scores = read_json(Path(metrics) / profile / "evaluation" / f"{_arm(description)}-{description['seed']}.json")
    check_card(description, scores, f"the network of profile {profile}")
    return scores


def check_card(description: Mapping[str, Any], scores: Mapping[str, Any], where: object) -> None:
    """Refuse scores that were measured with other weights.

    Parameters
    ----------
    description : Mapping
        What a file of weights says of itself.
    scores : Mapping
        An evaluation.
    where : object
        What to call the weights.

    Raises
    ------
    D4LensError
        Naming both fingerprints.
    """
    its, evaluated = description["fingerprint"], scores.get("fingerprint", "none")
    if its != evaluated:
        raise D4LensError(
            f"{where} has the fingerprint {its[:16]}, its evaluation in metrics/ was made with {evaluated[:16]}; evaluate the "
            "network again, or put the evaluated one into the package: make publish SHIP=1 (SHIP=marginal for the second network)"
        )


def genuine_sentence(description: Mapping[str, Any], path: str | Path) -> str:
    """Say in a sentence how these very weights classified genuine images.

    Parameters
    ----------
    description : Mapping
        What the file of weights says of itself.
    path : str or Path
        The study of genuine images; where it is missing, or has no row of these weights, the sentence says so.

    Returns
    -------
    str
        The sentence.

    Raises
    ------
    D4LensError
        For a study that cannot be read.
    """
    if Path(path).is_file():
        for row in outcome.read_outcome(path).records:
            of_all = row["quantity"] == "right" and row["class"] == "all"
            if of_all and row.get("weights") == description["fingerprint"]:
                return (
                    f"It labels {round(row['value'] * row['n'])} of {row['n']} genuine images of the published set correctly: "
                    f"a share of {row['ci_low']:.2f} to {row['ci_high']:.2f} (95 %, Wilson)."
                )
    return "It was tried on no genuine image."


def text(
    description: Mapping[str, Any], profile: str, scores: Mapping[str, Any], genuine: str, shipped: str = ""
) -> str:
    """Write the card from its parts.

    Parameters
    ----------
    description : Mapping
        What the file of weights says of itself.
    profile : str
        Where it was trained.
    scores : Mapping
        Its evaluation: {"n_train", "n_test", "plain": metrics, "tta": metrics}.
    genuine : str
        A sentence on genuine images.
    shipped : str
        Sentences on why the package holds it, if it does.

    Returns
    -------
    str
        Markdown.
    """
    seen = description["observation"]
    rows = [
        f"| {metric.title} | {' | '.join(_interval(scores[view][name]) for view in VIEWS)} |"
        for name, metric in TABLE.items()
        if name in scores[VIEWS[0]]  # an older evaluation has neither Brier score nor likelihood
    ]
    shipped = f"\n{shipped}" if shipped else ""
    versions = ", ".join(f"{name} {number}" for name, number in sorted(description["versions"].items()))
    return f"""# Model card: {description["name"]}

Tells from one image of a strong gravitational lens whether its substructure is absent (`no`), subhalos of cold dark
matter (`sphere`) or a vortex of superfluid dark matter (`vort`). {description["n_parameters"]:,} parameters, classes in the order
{", ".join(f"`{name}`" for name in description["classes"])}.

| | |
|---|---|
| training | profile `{profile}`, seed {description["seed"]}, epoch {description["epoch"]}, fingerprint `{description["fingerprint"][:16]}` |
| input | {seen["n_pixels"]} × {seen["n_pixels"]} pixels of {seen["pixel_scale"]:g} arcsec, photon counts; Gaussian PSF of σ = {seen["psf_sigma"]:g} arcsec, sky {seen["sky"]:g} counts a pixel |
| output | three probabilities, and the convergence of the substructure that it infers |
| packages | {versions} |
| licence | MIT, weights and code |

## Measured

On {scores["n_test"]:,} test images of the simulation it was trained on, which no choice of epoch or arm used; brackets are 95 % intervals over images.

| | one view | mean of eight views |
|---|---:|---:|
{chr(10).join(rows)}

{genuine}

## Training data

{scores["n_train"]:,} images of the preset `deeplense` of this project's simulator ([some turned](../DATA.md)), which imitates the published DeepLense set: a
singular isothermal sphere with external shear, a Sérsic source, Poisson counts, and 25 point masses or one rod as substructure
([DATA.md](../DATA.md)). No genuine image was used for training, or to choose an epoch or an arm.{shipped}

The constants of the simulator were fitted to genuine images of the published set. So a test on such images shows whether a network
trained on simulations works on genuine ones. It does not test the simulator independently.

## Intended use

Research and teaching on images like those it was trained on: one galaxy-scale lens, one band, the light of the lens galaxy
absent or subtracted, Poisson noise, and the pixel scale and PSF above. `d4lens predict` first fits a smooth lens and gives its
`chi2`. This network answers where `processing` says `fitted: specialist`. Do not use an answer that has a `flag`.

`predict` gives probabilities but no label in these cases:

- The fit did not converge, ended at a bound or saw too little of the ring.
- No network was trained on the maps of the fit. That is so where the light of the lens galaxy was fitted too.
- No class is likely enough: three quarters, or what the second network asks for.

`--force-label` gives a label all the same.

An answer without a flag can be wrong. Most wrong assumptions leave a chi2 that real substructure would leave too; only the mean
over many images shows them ([your-images.md](your-images.md)). How often an answer is wrong without a flag is measured in
[reliability.md](reliability.md#wrong-and-unflagged).

## Limits

- It separates three simulated models. An answer is not evidence for a kind of dark matter in nature: real subhalos are not
  25 point masses of one mass range, and real lens galaxies are not isothermal spheres.
- Anything else that a smooth lens does not explain (a companion galaxy, a wrong PSF, dust, a misaligned band) looks like
  substructure to the network.
- Masses that are too small, or too far from the arcs, leave no trace and are answered with `no`. So `no` means “not seen”.
- The probabilities are calibrated on the training simulation, with equal classes. They are not calibrated for other images or
  other shares of the classes.
- How well it sees weak substructure, and how it answers on images it was not trained for, is measured in
  [results.md](results.md#how-near-the-limit). What it does inside is in [INTERPRETABILITY.md](../INTERPRETABILITY.md).

## To make it again

`make reproduce PROFILE={profile}` trains it; `make publish SHIP=1` puts the network of the largest training into the package.
"""


def _second(description: Mapping[str, Any]) -> str:
    """Return the card's section on the network for the maps of the marginal fit."""
    profile = description["profile"]
    return f"""
## The second network

The package has another network, for images that the preset's lens does not describe: lenses of another axis ratio, source or PSF,
and images with a noise map. `predict` and `explain` then make the marginal fit, and this network reads its maps. It gives no label
where the light of the lens galaxy was fitted too, because it was trained on lenses whose galaxy is dark.

It is the arm `{_arm(description)}` of profile `{profile}`, seed {description["seed"]}, epoch {description["epoch"]}, fingerprint
`{description["fingerprint"][:16]}`, with {description["n_parameters"]:,} parameters and {description["n_train"]:,} training images
([presets `survey_deep` and `survey_bright`](../DATA.md#the-simulator)). No genuine image was used for training, or to choose an epoch or an arm. Its
scores are in `metrics/{profile}/results.csv`. The limits above hold for it too. `make reproduce PROFILE={profile}` trains it;
`make publish SHIP=marginal` puts it into the package.
"""


def _arm(description: Mapping[str, Any]) -> str:
    """Return the arm that weights were trained as: weights of an older version name only the network."""
    return str(description.get("arm", description["name"]))


def _interval(measured: Mapping[str, float]) -> str:
    return f"{measured['value']:.4f} [{measured['low']:.4f}, {measured['high']:.4f}]"
