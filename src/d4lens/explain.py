"""One image explained in a picture: what was seen, what a smooth lens makes of it, what is left, what the network drew."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from d4lens import models
from d4lens.classes import CLASSES
from d4lens.data import images
from d4lens.errors import D4LensError
from d4lens.evaluate.tta import exported, predict_logits
from d4lens.files import atomic_path
from d4lens.macrofit import fit
from d4lens.observation import Observation
from d4lens.predict import counts_of, default_weights, lens_of, network_batch

_HALF = 2.6  # arcsec shown to either side: the arcs, not the empty sky


@dataclass(frozen=True)
class Explanation:
    """What one image went through. Maps are (N, N), sigma in standard deviations, lengths in arcsec.

    `source` is (n, n) counts on a square of half side `source_half_width`; None for a network without a lens equation.
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
    converged: bool


def explain(path: str | Path, weights: str | Path | None = None) -> Explanation:
    """Fit and classify the one image at `path` and keep what was computed on the way.

    Raises D4LensError for a path with no or several images, an unusable image, or weights of a network that draws no
    convergence.
    """
    found = list(images.find([path]))
    if len(found) != 1:
        raise D4LensError(f"{path} holds {len(found)} images; name one")
    network, config = models.load(weights or default_weights())
    observation = Observation.from_dict(config["observation"])
    network = exported(network)
    try:
        pixels = counts_of(found[0], observation)
    except D4LensError as error:
        raise D4LensError(f"{found[0].name}: {error}") from None
    counts = torch.from_numpy(pixels.astype("float32"))[None]
    lens = lens_of(observation)
    result = fit(counts, lens)
    batch = network_batch(counts, result, lens)
    with torch.inference_mode():
        out = network(batch)
    if "kappa" not in out:
        raise D4LensError(f"{config['name']} draws no convergence to explain; give the weights of a d4lenspinn")
    engine = getattr(network, "engine", None)
    return Explanation(
        name=found[0].name,
        observation=observation,
        counts=counts[0],
        smooth=result.model_counts[0],
        residual=result.residual[0],
        significance=batch["significance"][0],
        kappa=out["kappa"][0],
        source=out["source"][0] if "source" in out else None,
        source_half_width=engine.source_half_width if engine is not None else 0.0,
        probabilities=tuple(predict_logits(network, [batch], tta=True).softmax(1)[0].tolist()),
        chi2=float(result.chi2[0]),
        converged=bool(result.converged[0]),
    )


def draw(explanation: Explanation, path: str | Path) -> None:
    """Draw it into an image file, atomically; the suffix names the format. Raises D4LensError for one unknown."""
    path, half = Path(path), explanation.observation.half_width
    panels: list[tuple[str, Tensor | None, dict]] = [
        ("image (square root of counts)", explanation.counts.clamp_min(0).sqrt(), {"cmap": "magma"}),
        ("smooth lens", explanation.smooth.sqrt(), {"cmap": "magma"}),
        ("residual [σ]", explanation.residual, {"cmap": "RdBu_r", "vmin": -6, "vmax": 6}),
        ("significance of one more mass [σ]", explanation.significance, {"cmap": "PuOr_r", "vmin": -20, "vmax": 20}),
        ("residual convergence, network", explanation.kappa, {"cmap": "viridis"}),
        ("source, re-constructed", explanation.source, {"cmap": "magma"}),
    ]
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(13.5, 6.6), layout="constrained")
        axes = figure.subplots(2, 4)
        for axis, (title, image, options) in zip(axes[:, :3].flat, panels, strict=True):
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
        axes[1, 3].set_axis_off()
        state = "converged" if explanation.converged else "NOT CONVERGED"
        figure.suptitle(f"{explanation.name}: smooth fit {state}, χ²/px {explanation.chi2:.3f}", fontsize=10)
        try:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, dpi=110)
        except ValueError:
            raise D4LensError(f"{path.name} names no picture format; end it in .png, .pdf or .svg") from None
