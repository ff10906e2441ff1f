"""One image explained in a picture: what was seen, what a smooth lens makes of it, what is left, what the network drew."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from d4lens.classes import CLASSES
from d4lens.data import images
from d4lens.data.images import ImageSource, Instrument
from d4lens.errors import D4LensError
from d4lens.files import atomic_path
from d4lens.flags import Flag, Raised, abstains, joined
from d4lens.inference.pipeline import (
    Classifier,
    batch_for,
    doubtful,
    fit_images,
    flags_of,
    load_classifier,
    prepare_source,
)
from d4lens.macrofit import significance
from d4lens.macrofit.centre import places
from d4lens.models.averaging import predict_logits
from d4lens.models.integrated_gradients import attribute, maps_read
from d4lens.observation import Observation

_HALF = 2.6  # arcsec shown to either side: the arcs, not the empty sky


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
    kappa : (N, N)
        Convergence of substructure that the network draws.
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
        How much each pixel adds to the logit of the likelier substructure, `attributed_to`, over that of `no`, at least
        0; None where the image's own pixels are not the network's.
    """

    name: str
    observation: Observation
    counts: Tensor
    smooth: Tensor
    residual: Tensor
    significance: Tensor
    kappa: Tensor
    source: Tensor | None
    source_half_width: float
    probabilities: tuple[float, ...]
    chi2: float
    flag: str
    abstains: bool = False
    processing: tuple[str, ...] = ()
    attribution: Tensor | None = None
    attributed_to: str = ""

    def plot(self) -> Figure:
        """Draw seven panels and the probabilities."""
        return _figure(self)


def explain(
    path: str | Path,
    weights: str | Path | None = None,
    *,
    told: Instrument = Instrument(),  # noqa: B008 - frozen
    free: Sequence[str] = (),
) -> Explanation:
    """Fit and classify one image and keep what was computed on the way.

    Parameters
    ----------
    path : str or Path
        A file that holds one image.
    weights : str or Path, optional
        A model.safetensors; None takes the package's.
    told : Instrument
        What is known of the instrument.
    free : sequence of str
        Parameters of the smooth lens to fit beyond the preset's.

    Returns
    -------
    Explanation

    Raises
    ------
    D4LensError
        For a path with no or several images, an image that cannot be used, and a network that draws no convergence.
    """
    found = list(images.find([path]))
    if len(found) != 1:
        raise D4LensError(f"{path} holds {len(found)} images; name one")
    return explain_source(found[0], load_classifier(weights), told=told, free=free)


def explain_source(
    source: ImageSource,
    classifier: Classifier,
    *,
    told: Instrument = Instrument(),  # noqa: B008 - frozen
    free: Sequence[str] = (),
) -> Explanation:
    """Explain an image found already, as `explain` does."""
    network, grid = classifier.network, classifier.grid
    try:
        image = prepare_source(images.masked([source], told.mask)[0], grid, told)
    except D4LensError as error:
        raise D4LensError(str(error) if source.name in str(error) else f"{source.name}: {error}") from None
    (fitted,) = fit_images([source.name], [image], grid, free)
    counts, result = fitted.counts, fitted.result
    batch = batch_for(fitted, classifier)
    with torch.inference_mode():
        out = network(batch)
    if "kappa" not in out:
        raise D4LensError(
            f"{classifier.config['name']} draws no convergence to explain; give the weights of a d4lenspinn"
        )
    engine = getattr(network, "engine", None)
    logits = predict_logits(network, [batch], tta=True)
    towards = 1 + logits[:, 1:].argmax(1)
    same_pixels = result.model_counts.shape == batch.counts.shape
    whence = None
    if (same_pixels or "counts" not in maps_read(network)) and not places(result, fitted.lens).any():
        whence = attribute(network, batch, result.model_counts, towards)[0]
    raised = flags_of(fitted, 0, classifier.config.get("largest_chi2"))
    raised += [Raised(Flag.UNSURE_CENTRE)] if doubtful(fitted, logits, classifier, tta=True)[0] else []
    return Explanation(
        name=source.name,
        observation=grid,
        counts=counts[0],
        smooth=result.model_counts[0],
        residual=result.residual[0],
        significance=significance(counts, result.parameters, fitted.lens)[0],
        kappa=out["kappa"][0],
        source=out["source"][0] if "source" in out else None,
        source_half_width=engine.source_half_width if engine is not None else 0.0,
        probabilities=tuple(logits.softmax(1)[0].tolist()),
        chi2=float(result.chi2[0]),
        flag=joined(raised),
        abstains=abstains(raised),
        processing=fitted.images[0].notes,
        attribution=whence,
        attributed_to=CLASSES[int(towards)],
    )


def draw_explanation(explanation: Explanation, path: str | Path) -> None:
    """Draw an explanation into a file, atomically; what was done to the image stands in the file's metadata too.

    Parameters
    ----------
    explanation : Explanation
        What to draw.
    path : str or Path
        Its suffix names the format.

    Raises
    ------
    D4LensError
        For an unknown format.
    """
    path = Path(path)
    key = {".png": "Description", ".svg": "Description", ".pdf": "Subject"}.get(path.suffix.lower())
    metadata = {key: "; ".join(explanation.processing)} if key else None
    try:
        with atomic_path(path) as temporary:
            _figure(explanation).savefig(temporary, dpi=110, metadata=metadata)
    except ValueError:
        raise D4LensError(f"{path.name} names no picture format; end it in .png, .pdf or .svg") from None


def _figure(explanation: Explanation) -> Figure:
    half = explanation.observation.half_width
    strongest = max(5.0, float(explanation.significance.abs().max()))
    panels: list[tuple[str, Tensor | None, dict[str, Any]]] = [
        ("image (square root of counts)", explanation.counts.clamp_min(0).sqrt(), {"cmap": "magma"}),
        ("smooth lens", explanation.smooth.sqrt(), {"cmap": "magma"}),
        ("residual [σ]", explanation.residual, {"cmap": "RdBu_r", "vmin": -6, "vmax": 6}),
        (
            "significance of one more mass [σ]",
            explanation.significance,
            {"cmap": "PuOr_r", "vmin": -strongest, "vmax": strongest},
        ),
        ("residual convergence, network", explanation.kappa, {"cmap": "viridis"}),
        ("source, re-constructed", explanation.source, {"cmap": "magma"}),
        (f"attribution: {explanation.attributed_to} over no", explanation.attribution, {"cmap": "viridis"}),
    ]
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(13.5, 6.6), layout="constrained")
        axes = figure.subplots(2, 4)
        for axis, (title, image, options) in zip([*axes[:, :3].flat, axes[1, 3]], panels, strict=True):
            side = explanation.source_half_width if image is explanation.source else half
            axis.set_title(title)
            if image is None:
                axis.set_axis_off()
                continue
            drawn = axis.imshow(image.numpy(), origin="lower", extent=(-side, side, -side, side), **options)
            shown = min(side, _HALF)
            axis.set(xlim=(-shown, shown), ylim=(-shown, shown), xlabel="arcsec")
            figure.colorbar(drawn, ax=axis, shrink=0.8)
        bars = axes[0, 3]
        bars.barh(CLASSES, explanation.probabilities, color=["0.6", "C0", "C1"])
        bars.set(xlim=(0, 1), title="probability, mean of eight views")
        bars.invert_yaxis()
        for place, p in enumerate(explanation.probabilities):
            bars.text(min(p + 0.02, 0.8), place, f"{p:.3f}", va="center")
        beware = f", {'no label' if explanation.abstains else 'beware'}: {explanation.flag}" if explanation.flag else ""
        figure.suptitle(f"{explanation.name}: smooth fit χ²/px {explanation.chi2:.3f}{beware}", fontsize=10)
    return figure
