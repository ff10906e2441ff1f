"""The picture of an explanation: fixed colour scales, so that noise looks like noise in every picture."""

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.files import atomic_path
from d4lens.inference.explain import Explanation

if TYPE_CHECKING:
    from d4lens.detection import Candidate

LAYOUTS = ("full", "talk")
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
_MEANS = {"no": "smooth", "sphere": "subhalos", "vort": "vortex"}
_WIDTH, _HEIGHT = 3.45, 3.15  # inches of a panel with its labels
_LETTERS = 26  # of the title, above one panel
_NAME = 60  # letters of the image's name that are shown, its last
_HALF = 2.6  # arcsec shown to either side: the arcs, not the empty sky
_RESIDUAL, _SIGNIFICANCE, _CONTOUR = 5.0, 10.0, 5.0  # standard deviations
_MASSES = (-4.0, -1.0)  # lg of the mass over the main lens's
_KAPPA = 0.1  # of the critical density


@dataclass(frozen=True)
class _Panel:
    title: str
    image: Tensor
    colours: str
    low: float | None = None
    high: float | None = None
    half_width: float = 0.0  # of the map, arcsec; 0 takes the image's
    centre: tuple[float, float] = (0.0, 0.0)
    contour: tuple[Tensor, float, str] | None = None
    marked: "tuple[Candidate, ...]" = ()


def figure(explanation: Explanation, layout: str = "full") -> Figure:
    """Draw an explanation.

    Parameters
    ----------
    explanation : Explanation
        What to draw.
    layout : {"full", "talk"}
        All panels, or four for a slide: image, residual, significance, and the true substructure or, where that is
        unknown, the network's convergence.

    Returns
    -------
    matplotlib.figure.Figure
        Its title is the verdict, its probability and the flags.

    Raises
    ------
    D4LensError
        For an unknown layout.
    """
    if layout not in LAYOUTS:
        raise D4LensError(f"layout takes {' or '.join(LAYOUTS)}, not {layout!r}")
    talk = layout == "talk"
    panels = _panels(explanation, talk)
    rows = 1 if talk else 2
    columns = -(-len(panels) // rows)
    title = textwrap.wrap(_title(explanation), _LETTERS * columns)
    head = 0.5 + 0.25 * len(title)  # inches
    height = _HEIGHT * rows + head
    with mpl.rc_context({"font.size": 11 if talk else 9}):
        drawn = Figure(figsize=(_WIDTH * columns, height))
        axes = drawn.subplots(rows, columns, squeeze=False).flat
        # By hand: constrained layout takes longer than all the drawing.
        drawn.subplots_adjust(0.16 / columns, 0.5 / height, 1 - 0.15 / columns, 1 - (head + 0.2) / height, 0.42, 0.36)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        for axis, panel in zip(axes, panels, strict=False):
            _draw(axis, panel, explanation.observation.half_width)
        colour = "firebrick" if explanation.flag else "black"
        drawn.suptitle("\n".join(title), size=15, weight="bold", color=colour, y=1 - 0.1 / height)
        drawn.text(0.5, 1 - (head - 0.1) / height, _facts(explanation), ha="center", size=9, color="0.35")
    return drawn


def draw_explanation(explanation: Explanation, path: str | Path, layout: str = "full") -> None:
    """Draw an explanation into a file, atomically; what was done to the image stands in the file's metadata too.

    Parameters
    ----------
    explanation : Explanation
        What to draw.
    path : str or Path
        Its suffix names the format.
    layout : {"full", "talk"}
        As `figure` takes it.

    Raises
    ------
    D4LensError
        For an unknown format or layout.
    """
    path = Path(path)
    check_format(path)
    key = "Subject" if path.suffix.lower() == ".pdf" else "Description"
    shown = figure(explanation, layout)
    with atomic_path(path) as temporary:
        shown.savefig(temporary, dpi=110, metadata={key: "; ".join(explanation.processing)})


def check_format(path: Path) -> None:
    """Check that a file's name ends in a picture format.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    D4LensError
        If it does not.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise D4LensError(
            f"{path.name} names no picture format; end it in .png, .pdf or .svg, or name a folder without an ending"
        )


def places_for(names: Sequence[str], out: Path | None) -> list[Path]:
    """Say where the pictures of images go.

    Parameters
    ----------
    names : sequence of str
        Of the images, as they were found.
    out : Path, optional
        A picture for one image, else a folder; None takes explained.png, or the folder explained/ for several images.

    Returns
    -------
    list of Path
        One for each image. In a folder each is called by its path below what all have in common.

    Raises
    ------
    D4LensError
        For one picture of several images, or a file name that ends in no picture format.
    """
    if out is None:
        out = Path("explained.png" if len(names) == 1 else "explained")
    if out.is_dir() or not out.suffix:
        return [out / name for name in _short(names)]
    check_format(out)
    if len(names) > 1:
        raise D4LensError(f"{out} is one picture and there are {len(names)} images; name a folder: -o {out.stem}")
    return [out]


def _short(names: Sequence[str]) -> list[str]:
    paths = [PurePath(name.replace(": ", "/")) for name in names]
    common = os.path.commonpath([path.parent for path in paths]) if paths else ""
    below = [path.relative_to(common) if common else path for path in paths]
    short = ["-".join(path.with_suffix("").parts) for path in below]
    whole = ["-".join(path.parts) for path in below]
    return [f"{name if short.count(name) == 1 else other}.png" for name, other in zip(short, whole, strict=True)]


def _panels(e: Explanation, talk: bool) -> list[_Panel]:
    image = _Panel("image, √counts", e.counts.clamp_min(0).sqrt(), "magma")
    residual = _Panel("residual of the smooth lens [σ]", e.residual, "RdBu_r", -_RESIDUAL, _RESIDUAL)
    significance = _Panel(
        "significance of one more mass [σ]",
        e.significance,
        "PuOr_r",
        -_SIGNIFICANCE,
        _SIGNIFICANCE,
        contour=(e.significance, _CONTOUR, "black"),
    )
    critical = (e.determinant, 0.0, "white")
    scale = ("viridis", 0.0, _KAPPA)
    drawn = _Panel("convergence κ, network", e.kappa, *scale, centre=e.lens_place, contour=critical)
    true = [_Panel(f"true κ: {e.truth[0]}", e.truth[1], *scale, contour=critical)] if e.truth else []
    if talk:
        return [image, residual, significance, *(true or [drawn])]
    panels = [image, _Panel("smooth lens, √counts", e.smooth.sqrt(), "magma"), residual, significance, drawn, *true]
    if e.source is not None:
        panels.append(_Panel("source, re-constructed", e.source, "magma", half_width=e.source_half_width))
    if e.candidates is not None:
        found = f"{len(e.candidates)} masses found" if len(e.candidates) != 1 else "1 mass found"
        panels.append(_Panel(f"{found}, √counts", e.counts.clamp_min(0).sqrt(), "gray", marked=e.candidates))
    if e.detectable is not None:
        panels.append(_Panel("log₁₀ of mass seen at 5σ over lens", e.detectable.log10(), "viridis_r", *_MASSES))
    if e.attribution is not None:
        panels.append(_Panel(f"attribution: {e.likeliest} over {e.rival}", e.attribution, "viridis"))
    return panels


def _draw(axis: Axes, panel: _Panel, half: float) -> None:
    side, (x, y) = panel.half_width or half, panel.centre
    drawn = axis.imshow(
        panel.image.numpy(),
        origin="lower",
        extent=(x - side, x + side, y - side, y + side),
        cmap=panel.colours,
        vmin=panel.low,
        vmax=panel.high,
    )
    if panel.contour is not None:
        values, level, colour = panel.contour
        if bool((values > level).any()) and bool((values < level).any()):
            extent = (-half, half, -half, half)
            axis.contour(values.numpy(), levels=[level], extent=extent, colors=colour, linewidths=0.9)
    for mass in panel.marked:
        axis.plot(mass.x, mass.y, "o", ms=9, mfc="none", mec="tab:red")
        axis.annotate(f"{mass.mass:.2%}", (mass.x, mass.y), (5, 4), textcoords="offset points", color="tab:red", size=8)
    shown = min(side, _HALF)
    axis.set_title(panel.title, y=1.0)  # matplotlib, left to find the place itself, takes a tenth of a second
    axis.set(xlim=(-shown, shown), ylim=(-shown, shown), xlabel="x [arcsec]", ylabel="y [arcsec]")
    axis.figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.03)


def _title(e: Explanation) -> str:
    label = f"{e.likeliest} ({_MEANS[e.likeliest]}), p = {max(e.probabilities):.3f}"
    return f"{'label withheld; likeliest ' if e.abstains else ''}{label}, {e.flag or 'no flag'}"


def _facts(e: Explanation) -> str:
    each = "   ".join(f"{name} {p:.3f}" for name, p in zip(CLASSES, e.probabilities, strict=True))
    name = e.name if len(e.name) <= _NAME else f"…{e.name[1 - _NAME :]}"
    return f"{name}   {each}   smooth lens χ²/pixel {e.chi2:.3f}"
