"""D4LensPINN from Python: what `d4lens` itself offers.

```python
from d4lens import load_model, fit, predict, simulate

lenses = simulate("deeplense", n=3, seed=1)
answer = load_model().predict(lenses.images)
print(answer.to_pandas()[["label", "chi2", "flag"]])
answer.plot().savefig("answer.png")
```

Images are paths (files, folders, zips, patterns) or arrays and tensors: one image (N, N) or a stack (B, N, N) in photon
counts or any linear rescaling of them. HDUs and HDULists, CCDData, Cutout2D and Quantities of astropy, pictures of Pillow,
DataFrames of numbers, open files, the bytes of a file, and lists of any of these are taken too: see `d4lens.inference.given`. What is
known of the instrument goes by name into every function, as a number or a Quantity:

- pixel_scale: arcsec per pixel.
- psf: standard deviation of the PSF in arcsec, an image of it (h, w), or the file of one (FILE:EXT of several).
- gain: photons per unit of the values. exposure: seconds by which the values, a rate, are multiplied.
- sky: mean sky photons per pixel, whether or not the values still hold it.
- band: name or number of the band in files that hold several.
- mask: where pixels hold no data: an array or a file of the images' shape, nonzero or True there; a list has one an image.
- free: parameters of the smooth lens to fit beyond the preset's, such as ("n", "R_e") or "n,R_e".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from d4lens.classes import CLASSES
from d4lens.data.images import Instrument, instrument
from d4lens.errors import D4LensError
from d4lens.inference import given
from d4lens.inference.explain import Explanation, explain_source
from d4lens.inference.pipeline import Answer, Classifier, classify, fit_sources, freed_columns, load_classifier
from d4lens.macrofit.smooth_lens import FIT_COLUMNS
from d4lens.observation import Observation
from d4lens.simulator import Truth, draw, preset, render

Images = Any
"""Whatever `d4lens.inference.given.sources` finds images in."""
Number = Any
"""A number, a text of one, or a Quantity of astropy."""


class Known(TypedDict, total=False):
    """What is known of the instrument: see above."""

    pixel_scale: Number
    psf: Number | str | Path
    gain: Number
    exposure: Number
    sky: Number
    band: str | int | None
    mask: Any


_SHOWN = 40  # images that a drawing has room for
_COLOURS = ("0.6", "C0", "C1")


@dataclass(frozen=True)
class Predictions:
    """What a network says of B images.

    Attributes
    ----------
    names: paths, or places in the given stack.
    labels: `no`, `sphere` or `vort`; "" where an image could not be used or a flag withholds its label.
    probabilities: (B, 3) in the order of `d4lens.classes.CLASSES`; NaN where an image could not be used.
    chi2: (B,) of the smooth lens, per pixel.
    flags, processing: what to beware of, and what was done to each image; see `d4lens.inference.pipeline.predict_table`.
    """

    names: list[str]
    labels: list[str]
    probabilities: NDArray[np.float64]
    chi2: NDArray[np.float64]
    flags: list[str]
    processing: list[str]

    def to_pandas(self) -> pd.DataFrame:
        """One row an image, columns `d4lens.inference.pipeline.PREDICT_COLUMNS`."""
        probabilities = {f"p_{name}": self.probabilities[:, i] for i, name in enumerate(CLASSES)}
        return pd.DataFrame(
            {
                "path": self.names,
                "label": self.labels,
                **probabilities,
                "chi2": self.chi2,
                "flag": self.flags,
                "processing": self.processing,
            }
        )

    def plot(self) -> Figure:
        """The probabilities as bars, one an image, the first 40 of them."""
        shown = self.probabilities[:_SHOWN]
        figure = Figure(figsize=(7, 1.2 + 0.25 * len(shown)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(shown))
        for name, column, colour in zip(CLASSES, shown.T, _COLOURS, strict=True):
            width = np.nan_to_num(column)
            axes.barh(range(len(shown)), width, left=left, label=name, color=colour)
            left += width
        axes.set_yticks(range(len(shown)), [Path(name).name for name in self.names[:_SHOWN]])
        axes.set(xlim=(0, 1), xlabel="probability", title=_title("probabilities", len(shown), len(self.names)))
        axes.invert_yaxis()
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.0), ncols=3)
        return figure


@dataclass(frozen=True)
class Fits:
    """The smooth lenses of B images.

    Attributes
    ----------
    names: paths, or places in the given stack.
    parameters: (B, 7) in the order of `FIT_COLUMNS`: theta_E, gamma1, gamma2, source_x, source_y, e1, e2; arcsec for
        lengths; NaN where an image could not be used.
    chi2: (B,) per pixel: 1 is noise.
    converged: (B,) bool.
    flags, processing: what to beware of, and what was done to each image.
    freed: what was freed beyond these seven, one row an image: its value, and its standard deviation as `sigma_NAME`.
    """

    names: list[str]
    parameters: NDArray[np.float64]
    chi2: NDArray[np.float64]
    converged: NDArray[np.bool_]
    flags: list[str]
    processing: list[str]
    freed: pd.DataFrame

    def to_pandas(self) -> pd.DataFrame:
        """One row an image, columns `d4lens.inference.pipeline.FIT_TABLE_COLUMNS` and those of `freed`."""
        return pd.DataFrame(
            {
                "path": self.names,
                **{name: self.parameters[:, i] for i, name in enumerate(FIT_COLUMNS)},
                "chi2": self.chi2,
                "converged": self.converged,
                "flag": self.flags,
                "processing": self.processing,
                **self.freed,
            }
        )

    def plot(self) -> Figure:
        """Each parameter, and chi2, of the first 40 images."""
        n = min(len(self.names), _SHOWN)
        figure = Figure(figsize=(9, 5), layout="constrained")
        figure.suptitle(_title("smooth lenses", n, len(self.names)))
        columns = [*zip(FIT_COLUMNS, self.parameters[:n].T, strict=True), ("chi2 per pixel", self.chi2[:n])]
        good = self.converged[:n]
        for axes, (name, values) in zip(figure.subplots(2, 4).flat, columns, strict=True):
            axes.plot(np.flatnonzero(good), values[good], "o", color="C0")
            axes.plot(np.flatnonzero(~good), values[~good], "x", color="C3")
            axes.set(title=name, xlabel="image")
        return figure


@dataclass(frozen=True)
class Simulated:
    """Simulated lenses: `images` (B, N, N) float32 photon counts, `labels` (B,), `truth` what is in each, and the
    `observation` they were made for."""

    images: NDArray[np.float32]
    labels: list[str]
    truth: Truth
    observation: Observation

    def to_pandas(self) -> pd.DataFrame:
        """The truth, one row an image, columns `d4lens.simulator.COLUMNS`; lengths in arcsec."""
        return self.truth.images.copy()

    def plot(self) -> Figure:
        """The first 12 images, square root of the counts."""
        shown = self.images[:12]
        rows = -(-len(shown) // 4)
        half = self.observation.half_width
        figure = Figure(figsize=(10, 2.7 * rows), layout="constrained")
        for axes, image, label in zip(figure.subplots(rows, 4, squeeze=False).flat, shown, self.labels):
            axes.imshow(np.sqrt(image), origin="lower", cmap="magma", extent=(-half, half, -half, half))
            axes.set(title=label, xlabel="arcsec")
        for axes in figure.axes[len(shown) :]:
            axes.set_axis_off()
        return figure


@dataclass(frozen=True)
class Model:
    """A trained network. `config` is what its file says of it: name, observation, training's fingerprint, ..."""

    classifier: Classifier

    @property
    def config(self) -> dict[str, Any]:
        """What the weights' file says of the network."""
        return self.classifier.config

    def predict(
        self,
        images: Images,
        *,
        tta: bool = True,
        force_label: bool = False,
        free: str | Sequence[str] = (),
        progress: bool = False,
        **known: Unpack[Known],
    ) -> Predictions:
        """Classify images, each averaged over the eight symmetries of the square if `tta`.

        force_label: give a label also where a flag withholds it. known: pixel_scale, psf, gain, exposure, sky, band, mask,
        as above. An image that cannot be used keeps its row, with the reason as its flag. Raises D4LensError for paths without images and values out of range.
        """
        how = {"tta": tta, "force_label": force_label, "progress": progress}
        switches = {name: given.switch(name, value) for name, value in how.items()}
        told, names = _told(known), given.names_of(free)
        answer = classify(given.sources(images), self.classifier, told=told, free=names, **switches)
        table = answer.table
        return Predictions(
            names=table["path"].tolist(),
            labels=table["label"].tolist(),
            probabilities=table[[f"p_{name}" for name in CLASSES]].to_numpy(np.float64),
            chi2=table["chi2"].to_numpy(np.float64),
            flags=table["flag"].tolist(),
            processing=table["processing"].tolist(),
        )

    def explain(self, image: Images, *, free: str | Sequence[str] = (), **known: Unpack[Known]) -> Explanation:
        """What the answer for one image rests on; its `plot()` draws it. Raises D4LensError for several images, one that
        cannot be used, and a network that draws no convergence."""
        found = given.sources(image)
        if len(found) != 1:
            raise D4LensError(f"{len(found)} images were given to be explained; give one")
        return explain_source(found[0], self.classifier, told=_told(known), free=given.names_of(free))


def load_model(path: str | Path | None = None) -> Model:
    """The network in a model.safetensors; None takes the package's. Raises D4LensError for a file it cannot use."""
    return Model(load_classifier(given.path_or_none("path", path)))


def predict(
    images: Images,
    weights: str | Path | None = None,
    *,
    tta: bool = True,
    force_label: bool = False,
    free: str | Sequence[str] = (),
    progress: bool = False,
    **known: Unpack[Known],
) -> Predictions:
    """Classify images with the network in `weights` (None: the package's). For the rest see `Model.predict`."""
    return load_model(weights).predict(images, tta=tta, force_label=force_label, free=free, progress=progress, **known)


def fit(images: Images, *, free: str | Sequence[str] = (), progress: bool = False, **known: Unpack[Known]) -> Fits:
    """Fit a lens without substructure (SIE, shear, Sérsic source, PSF, sky) to each image by Poisson likelihood.

    known: pixel_scale, psf, gain, exposure, sky, band, mask, as above. Raises D4LensError for paths without images, values out
    of range and names in `free` that are no parameters.
    """
    names = given.names_of(free)
    shown = given.switch("progress", progress)
    answer: Answer = fit_sources(given.sources(images), told=_told(known), free=names, progress=shown)
    table = answer.table
    return Fits(
        names=table["path"].tolist(),
        parameters=table[list(FIT_COLUMNS)].to_numpy(np.float64),
        chi2=table["chi2"].to_numpy(np.float64),
        converged=table["converged"].to_numpy(np.bool_),
        flags=table["flag"].tolist(),
        processing=table["processing"].tolist(),
        freed=table[freed_columns(names)],
    )


def simulate(
    name: str = "deeplense", n: int = 3, seed: int = 0, overrides: Mapping[str, Any] | None = None
) -> Simulated:
    """Simulate `n` images of a preset, the classes in turn; the same seed gives the same images.

    overrides: priors to replace, as in `d4lens.simulator.preset`. Raises D4LensError for an unknown preset or prior,
    PhysicsError for a value outside its range.
    """
    if not isinstance(n, Integral) or n < 1:
        raise D4LensError(f"n must be a whole number of at least 1, not {n!r}")
    if not isinstance(name, str):
        raise D4LensError(f"a preset is called by its name, such as 'deeplense', not by {name!r}")
    if overrides is not None and not (
        isinstance(overrides, Mapping) and all(isinstance(key, str) for key in overrides)
    ):
        raise D4LensError(f"overrides are given by name, such as {{'theta_E': 1.2}}, not as {overrides!r}")
    lenses = preset(name, overrides)
    truth = draw(lenses, seed, range(n))
    images = np.asarray(render(truth, lenses), np.float32)
    return Simulated(images, truth.images["class"].tolist(), truth, lenses.observation)


def _told(known: Mapping[str, Any]) -> Instrument:
    return instrument(**given.told(known, Known.__annotations__))


def _title(what: str, shown: int, all_of_them: int) -> str:
    return what if shown == all_of_them else f"{what} of the first {shown} of {all_of_them} images"
