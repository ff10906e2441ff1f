"""One image explained: what was seen, what a smooth lens makes of it, what is left, what the network drew."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from d4lens import lensing
from d4lens.classes import CLASSES
from d4lens.data.images import ImageSource, Instrument
from d4lens.errors import D4LensError
from d4lens.flags import Flag, Raised, abstains, join_flags
from d4lens.inference.archived_truth import true_substructure
from d4lens.inference.pipeline import (
    Classifier,
    Fitted,
    batch_for,
    doubtful,
    fit_images,
    flags_of,
    maps_of,
    prepare_source,
    undecided,
    way_of,
)
from d4lens.macrofit.centre import places
from d4lens.macrofit.world import AUTO
from d4lens.models.averaging import predict_logits
from d4lens.models.integrated_gradients import attribute, maps_read
from d4lens.observation import Observation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from d4lens.detection import Candidate

IN_QUESTION = 0.01
"""Probability from which on a class other than the likeliest was in question."""


@dataclass(frozen=True)
class Explanation:
    """What one image went through.

    Attributes
    ----------
    name : str
        Path, or place in a given stack.
    observation : Observation
        The network's pixels, PSF and sky.
    counts, smooth : (N, N)
        The image and the smooth lens fitted to it, photons.
    residual, significance : (N, N)
        What the smooth lens leaves, and the significance of one more mass in each pixel, standard deviations.
    determinant : (N, N)
        det A of the smooth lens, the inverse magnification; its zeros are the critical curve.
    kappa : (N, N)
        Convergence of substructure that the network draws, its centre at the lens.
    lens_place : tuple of float
        (x, y) of the lens on the image, arcsec.
    source : (n, n), optional
        Counts of the source on a square of half side `source_half_width`, arcsec; None for a network without a lens
        equation.
    probabilities : tuple of float
        In the order of `d4lens.classes.CLASSES`.
    chi2 : float
        Of the smooth lens, per pixel.
    flag, abstains
        The flags in words, and whether one of them withholds the label.
    processing : tuple of str
        What was done to the image.
    attribution : (N, N), optional
        How much each pixel adds to the logit of the likeliest class over that of `rival`, at least 0. None where no other
        class was in question, and where the image's own pixels are not the network's.
    rival : str
        The second likeliest class, if it was in question: of a probability of at least IN_QUESTION. Else empty.
    truth : tuple, optional
        The class and the convergence (N, N) of the substructure that a simulation put there; None where it is unknown.
    candidates : tuple of Candidate, optional
        Masses beside the main lens, as `d4lens detect` finds them; None where they were not looked for.
    detectable : (N, N), optional
        The mass that would show at five standard deviations at each place, in units of the main lens's.
    """

    name: str
    observation: Observation
    counts: Tensor
    smooth: Tensor
    residual: Tensor
    significance: Tensor
    determinant: Tensor
    kappa: Tensor
    lens_place: tuple[float, float]
    source: Tensor | None
    source_half_width: float
    probabilities: tuple[float, ...]
    chi2: float
    flag: str
    abstains: bool = False
    processing: tuple[str, ...] = ()
    attribution: Tensor | None = None
    rival: str = ""
    truth: tuple[str, Tensor] | None = None
    candidates: "tuple[Candidate, ...] | None" = None
    detectable: Tensor | None = None

    @property
    def likeliest(self) -> str:  # numpydoc ignore=RT01
        """The class of the highest probability, also where a flag withholds the label."""
        return CLASSES[max(range(len(CLASSES)), key=self.probabilities.__getitem__)]

    def plot(self, layout: str = "full") -> "Figure":
        """Draw it, as `d4lens.inference.picture.figure` does.

        Parameters
        ----------
        layout : str
            As `figure` takes it.

        Returns
        -------
        matplotlib.figure.Figure
            The drawing.
        """
        from d4lens.inference.picture import figure

        return figure(self, layout)


def explain_source(
    source: ImageSource,
    classifier: Classifier,
    *,
    instrument: Instrument = Instrument(),  # noqa: B008 - frozen
    free: Sequence[str] = (),
    model: str = AUTO,
    masses: bool = False,
) -> Explanation:
    """Fit and classify one image and keep what was computed on the way.

    Parameters
    ----------
    source : ImageSource
        The image, `instrument.joined` with its mask and noise map.
    classifier : Classifier
        The network.
    instrument : Instrument
        What is known of the instrument.
    free : sequence of str
        Parameters of the smooth lens to fit beyond the preset's.
    model : str
        One of MODELS.
    masses : bool
        Look for masses beside the main lens too, which takes up to two seconds more.

    Returns
    -------
    Explanation
        Of the image.

    Raises
    ------
    D4LensError
        Naming the image, if it cannot be used; for a network that draws no convergence.
    """
    grid = classifier.grid
    way = way_of(model, instrument, free, classifier)
    try:
        image = prepare_source(source, grid, instrument)
    except D4LensError as error:
        raise D4LensError(str(error) if source.name in str(error) else f"{source.name}: {error}") from None
    (fitted,) = fit_images([source.name], [image], grid, way)
    classifier = classifier.of(fitted.model)
    network = classifier.network
    counts, result = fitted.counts, fitted.result
    maps = maps_of(counts, result, fitted.lens)
    batch = batch_for(fitted, classifier, maps)
    with torch.inference_mode():
        out = network(batch)
    if "kappa" not in out:
        raise D4LensError(
            f"{classifier.config['name']} draws no convergence to explain; give the weights of a d4lenspinn"
        )
    engine = getattr(network, "engine", None)
    logits = predict_logits(network, [batch], tta=True)
    probabilities = logits.softmax(1)[0]
    first, second = probabilities.argsort(descending=True)[:2].tolist()
    rival = CLASSES[second] if probabilities[second] >= IN_QUESTION else ""
    at = places(result, fitted.lens)
    same_pixels = result.model_counts.shape == batch.counts.shape
    whence = None
    if rival and (same_pixels or "counts" not in maps_read(network)) and not at.any():
        one, other = torch.tensor([first]), torch.tensor([second])
        whence = attribute(network, batch, result.model_counts, one, over=other)[0]
    raised = flags_of(fitted, 0, classifier)
    raised += [Raised(Flag.UNSURE_CENTRE)] if doubtful(fitted, logits, classifier, tta=True)[0] else []
    candidates, detectable = None, None
    if masses and not abstains(raised):
        from d4lens.detection import search, sensitivity_map  # scipy.stats, a third of a second
        from d4lens.inference.mass_search import scene

        looked_at = scene(fitted, 0)
        candidates = search(counts, looked_at).candidates
        detectable = sensitivity_map(looked_at)
    raised += undecided(probabilities, classifier)
    return Explanation(
        name=source.name,
        observation=grid,
        counts=counts[0],
        smooth=result.model_counts[0],
        residual=result.residual[0],
        significance=maps[0],
        determinant=_determinant(fitted),
        kappa=out["kappa"][0],
        lens_place=(float(at[0, 0]), float(at[0, 1])),
        source=out["source"][0] if "source" in out else None,
        source_half_width=engine.source_half_width if engine is not None else 0.0,
        probabilities=tuple(probabilities.tolist()),
        chi2=float(result.chi2[0]),
        flag=join_flags(raised),
        abstains=abstains(raised),
        processing=fitted.images[0].notes,
        attribution=whence,
        rival=rival,
        truth=true_substructure(source, grid),
        candidates=candidates,
        detectable=detectable,
    )


def _determinant(fitted: Fitted) -> Tensor:
    """Compute det A (N, N) of the smooth lens, an isothermal ellipse and shear, at the pixels' centres; NaN where the fit failed.

    The deflection's gradient is 2 kappa times the projector across the radius (Kormann et al. 1994).
    """
    lens = fitted.lens
    free = dict(zip(fitted.names_fitted, fitted.result.parameters[0].tolist(), strict=True))
    p = {name: torch.tensor(value, dtype=torch.float64) for name, value in {**lens.constants, **free}.items()}
    x, y = (axis.double().cpu() + 1e-6 for axis in lens.pixel_centres())  # beside the pole, where A is not defined
    dx, dy = x - p["lens_x"], y - p["lens_y"]
    with lensing.unchecked():  # the parameters of a fit that failed are NaN
        q, phi = lensing.axis_ratio_and_angle(p["lens_e1"], p["lens_e2"])
        kappa = lensing.sie_convergence(x, y, p["theta_E"], q, phi, p["lens_x"], p["lens_y"])
    across = 2 * kappa / (dx * dx + dy * dy)
    xx, yy, xy = 1 - p["gamma1"] - across * dy * dy, 1 + p["gamma1"] - across * dx * dx, across * dx * dy - p["gamma2"]
    determinant: Tensor = xx * yy - xy * xy
    return determinant
