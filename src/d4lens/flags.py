"""What an answer can be marked with: every flag's words, what it means, what to do, and whether the label is withheld.

A flag is registered by one line in `Flag`. It is raised by `Raised(Flag.X, detail)`: in `Prepared.flags` by whoever prepares
an image, in `d4lens.inference.pipeline.flags_of` where the fit tells. The table in docs/your-images.md is `markdown()`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

LIKE_TRAINING = 0.999
"""Share of the training images whose chi2 an image may have without being called unlike them."""
DECIDED = 0.75
"""Probability without which no network gives a label."""
RIGHT = 0.97
"""Share of the selection split's labels that are to be right; a network that needs a higher probability for it asks for that."""


class Flag(Enum):
    """What an answer can be marked with.

    Parameters
    ----------
    text : str
        Its words; … stands for a detail.
    meaning : str
        What it means.
    remedy : str
        What to do.
    abstains : bool
        Whether `predict` withholds the label.
    """

    NOT_CONVERGED = (
        "not converged",
        "no smooth lens was found",
        "look at `d4lens explain`; is the lens at the centre, the pixel scale right?",
        True,
    )
    AT_ITS_BOUND = (
        "at its bound: …",
        "a parameter of the smooth lens ended where the fit may not pass: there is no such lens, or none in the image",
        "as above",
        True,
    )
    POOR_FIT = (
        "poor fit: …",
        "the marginal fit leaves more than noise on the arcs: substructure, another PSF, or not the right lens",
        "look at `d4lens explain`; give `--einstein-radius`, `--psf`; mask companions",
        False,
    )
    UNSEEN_RING = (
        "too little of the ring is seen",
        "pixels without data, outside the image or masked, cover much of the lens's ring",
        "cut a larger image out, or mask less",
        True,
    )
    OFF_CENTRE = (
        "off centre",
        "the lens lies more than three pixels from the image's centre",
        "cut the image out about the lens",
        False,
    )
    UNSURE_CENTRE = (
        "unsure of its centre",
        "with the lens a little off the image's centre the label is another: substructure and such a shift look alike",
        "cut the image out about the lens",
        False,
    )
    UNDECIDED = (
        "undecided",
        "no class is likely enough: its probability is below three quarters, or below what the network's file asks for",
        "take the probabilities for what they are; a deeper image may decide",
        True,
    )
    UNLIKE_TRAINING = (
        "unlike training",
        "chi2 lies beyond all but a thousandth of the training images",
        "the label means nothing; free what differs (below)",
        False,
    )
    OTHER_MAPS = (
        "network of other maps: …",
        "the network was not trained on maps of the fit that was made: one with the lens galaxy's light, or another than "
        "that of the network of `--weights`",
        "use the fit and its maps; without a shining galaxy leave `--einstein-radius` out; with `--weights` give `--model` as "
        "in its training",
        True,
    )
    TOO_LITTLE_NOISE = (
        "too little noise",
        "chi2 is lower than photons allow: a smoothed image, or a gain too small",
        "give the right `--gain`, or the image before smoothing",
        False,
    )
    NO_COUNTS = ("no photon counts", "the noise had to be guessed", "give `--gain`, `--exposure`, `--sky`", False)
    ROUGH_SCALE = (
        "rough photon scale",
        "the values are a file format's levels, coarser than photons (an 8-bit picture); the sky's noise gave the scale",
        "give the image before it became a picture: 5 in 100 labels change",
        False,
    )
    SCALE_GUESSED = (
        "pixel scale guessed",
        "neither you nor the header gives it, and the image is not on the published lattice: the lens may be any size",
        "give `--pixel-scale`",
        False,
    )
    HEADER_DISAGREES = (
        "header disagrees on the …",
        "two of the header's statements of pixel scale (by more than 1 %), gain or exposure (3 %) differ; the first is used",
        "give the right one: `--pixel-scale`, `--gain`, `--exposure`",
        False,
    )
    PSF_HEADER_DISAGREES = (
        "PSF's header disagrees on the …",
        "the same in the header of the PSF's image",
        "mend it, or give the PSF's sigma",
        False,
    )
    GAIN_ASSUMED = (
        "gain assumed to be 1",
        "the values are counts, no gain is given, and the sky's variance is not its mean as photons have it",
        "give `--gain`",
        False,
    )
    PHOTONS_ALREADY = (
        "photons already",
        "the sky's variance is its mean, as photons have it, but gain, exposure or unit say that a value is not a photon",
        "leave `--gain` and `--exposure` out, or mend the header's unit",
        True,
    )
    NOT_ROUND = (
        "PSF is not round",
        "the round Gaussians fitted to your PSF's image would leave a residual in this image that passes for structure",
        "do not trust `sphere` or `vort`: the PSF is modelled as a sum of round Gaussians",
        False,
    )
    PSF_DISAGREES = (
        "PSF disagrees: …",
        "with the PSF's width free the smooth lens leaves far less unexplained",
        "give the right `--psf`: a wrong one leaves residuals that pass for substructure",
        False,
    )
    UNEXPLAINED = (
        "more than these masses",
        "with the masses that `d4lens detect` names the image still holds what noise does not explain, or their fit did not "
        "converge",
        "the masses stand for something else, such as a rod, a source or a lens of another shape; free what differs (below)",
        True,
    )
    ANOTHER_LENS = (
        "not the preset's lens",
        "a lens and a source of another shape explain more of the image than the masses that `d4lens detect` found",
        "`--model marginal`, or free what differs (below)",
        True,
    )
    FAILED = (
        "failed: …",
        "the image could not be used, and why",
        "the row stays, the run goes on, the command ends with status 1 and the number of failures",
        True,
    )

    def __init__(self, text: str, meaning: str, remedy: str, abstains: bool) -> None:
        self.text = text
        self.meaning = meaning
        self.remedy = remedy
        self.abstains = abstains


@dataclass(frozen=True)
class Raised:
    """A flag of one image.

    Attributes
    ----------
    flag : Flag
        Which flag.
    detail : str
        What stands for the … in its words, such as the parameters at their bounds.
    """

    flag: Flag
    detail: str = ""

    def __str__(self) -> str:
        return self.flag.text.replace("…", self.detail)


def join_flags(raised: Iterable[Raised]) -> str:
    """Join flags for a table's cell.

    Parameters
    ----------
    raised : iterable of Raised
        The flags.

    Returns
    -------
    str
        Their words, divided by "; "; empty without any.
    """
    return "; ".join(map(str, raised))


def abstains(raised: Iterable[Raised]) -> bool:
    """Tell whether an image with these flags gets no label.

    Parameters
    ----------
    raised : iterable of Raised
        The flags.

    Returns
    -------
    bool
        Whether it gets none.
    """
    return any(one.flag.abstains for one in raised)


def flags_markdown() -> str:
    """Return all flags as a table in Markdown.

    Returns
    -------
    str
        A row for each flag.
    """
    rows = [
        f"| `{flag.text}` | {flag.meaning} | {flag.remedy} | {'withheld' if flag.abstains else 'given'} |"
        for flag in Flag
    ]
    return "\n".join(["| flag | meaning | what to do | label |", "|---|---|---|---|", *rows])


def largest_chi2(of_training: ArrayLike) -> float:
    """Return the chi2 a pixel beyond which `predict` flags an image.

    Parameters
    ----------
    of_training : array_like
        chi2 a pixel of the training images, (n,).

    Returns
    -------
    float
        Their `LIKE_TRAINING` quantile, rounded to three decimals.
    """
    return round(float(np.quantile(np.asarray(of_training, np.float64), LIKE_TRAINING)), 3)


def decided(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the probability without which `predict` gives no label.

    Parameters
    ----------
    probabilities : ndarray
        (n, C) of images that chose no weight.
    labels : ndarray
        (n,) their classes.

    Returns
    -------
    float
        The smallest from DECIDED on, to three decimals, with which RIGHT of the labels are right; 1 where there is none.
    """
    likeliest, right = probabilities.max(1), probabilities.argmax(1) == labels
    tried = np.round(np.arange(DECIDED, 1.0, 0.001), 3)
    return next((float(t) for t in tried if (likeliest >= t).any() and right[likeliest >= t].mean() >= RIGHT), 1.0)


def unlike_training(chi2: ArrayLike, converged: ArrayLike, largest: float) -> NDArray[np.bool_]:
    """Find the images whose fit did not converge, or whose chi2 is above that of the training images.

    Parameters
    ----------
    chi2 : array_like
        chi2 a pixel, (n,).
    converged : array_like
        Whether each fit converged, (n,).
    largest : float
        The bound, from `largest_chi2`.

    Returns
    -------
    numpy.ndarray
        Whether `predict` flags the image, (n,), bool.
    """
    return ~np.asarray(converged, bool) | (np.asarray(chi2, np.float64) > largest)
