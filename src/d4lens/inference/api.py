"""D4LensPINN from Python: what `d4lens` itself offers.

```python
from d4lens import load_model, detect, fit, predict, simulate

lenses = simulate("deeplense", n=3, seed=1)
answer = load_model().predict(lenses.images)
print(answer.to_pandas()[["label", "chi2", "flag"]])
answer.plot().savefig("answer.png")
```

Images are paths (files, folders, zips, patterns) or arrays and tensors: one image (N, N) or a stack (B, N, N) in photon
counts or any linear rescaling of them. HDUs and HDULists, CCDData, Cutout2D and Quantities of astropy, pictures of Pillow,
DataFrames of numbers, open files, the bytes of a file, and lists of any of these are taken too: see `d4lens.inference.arguments`. What is
known of the instrument goes by name into every function, as a number or a Quantity:

- pixel_scale: arcsec per pixel.
- psf: standard deviation of the PSF in arcsec, an image of it (h, w), or the file of one (FILE:EXT of several).
- gain: photons per unit of the values. exposure: seconds by which the values, a rate, are multiplied.
- sky: mean sky photons per pixel, whether or not the values still hold it.
- band: name or number of the band in files that hold several.
- mask: where pixels hold no data: an array or a file of the images' shape, nonzero or True there; a list has one an image.
- noise: standard deviation of each pixel in the images' units, infinite without data: an array or a file (FILE:EXT of
  several; of an .npz the key `noise`); a list has one an image. Photon noise otherwise.
- einstein_radius: arcsec, right within a quarter, of lenses whose galaxy shines itself.
- free: parameters of the smooth lens to fit beyond the preset's, such as ("n", "R_e") or "n,R_e".
- model: the smooth lens to fit, one of `d4lens.macrofit.world.MODELS`.
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
from d4lens.data.images import Instrument, read_instrument
from d4lens.errors import D4LensError
from d4lens.inference import arguments
from d4lens.inference.explain import Explanation, explain_source
from d4lens.inference.mass_search import Wanted, detect_sources
from d4lens.inference.pipeline import ARCS_CHI2, FIT_TABLE_COLUMNS, Classifier, classify, fit_sources, load_classifier
from d4lens.macrofit.columns import FIT_COLUMNS
from d4lens.macrofit.world import AUTO
from d4lens.observation import Observation
from d4lens.simulator import Truth, draw, preset, render
from d4lens.table_files import PROBABILITIES

AnyImages = Any
"""Whatever `d4lens.inference.arguments.sources` finds images in."""
AnyNumber = Any
"""A number, a text of one, or a Quantity of astropy."""


class Known(TypedDict, total=False):
    """What is known of the instrument: see above."""

    pixel_scale: AnyNumber
    psf: AnyNumber | str | Path
    gain: AnyNumber
    exposure: AnyNumber
    sky: AnyNumber
    band: str | int | None
    mask: Any
    noise: Any
    einstein_radius: AnyNumber


_SHOWN = 40  # images that a drawing has room for
_COLOURS = ("0.6", "C0", "C1")


@dataclass(frozen=True)
class _Answers:
    """One row an image."""

    table: pd.DataFrame

    @property
    def names(self) -> list[str]:
        """Paths, or places in the given stack."""
        return self._texts("path")

    @property
    def chi2(self) -> NDArray[np.float64]:
        """(B,) of the smooth lens, per pixel: 1 is noise. NaN where an image could not be used."""
        return np.asarray(self.table["chi2"], np.float64)

    @property
    def flags(self) -> list[str]:
        """What to beware of, in the words of `d4lens.flags`; empty where nothing is."""
        return self._texts("flag")

    @property
    def processing(self) -> list[str]:
        """What was done to each image."""
        return self._texts("processing")

    def to_pandas(self) -> pd.DataFrame:
        """Return a copy of the table."""
        return self.table.copy()

    def _texts(self, column: str) -> list[str]:
        return [str(value) for value in self.table[column]]


@dataclass(frozen=True)
class Predictions(_Answers):
    """What a network says of B images.

    Attributes
    ----------
    table : pandas.DataFrame
        One row an image, columns `d4lens.inference.pipeline.PREDICT_COLUMNS`.
    """

    @property
    def labels(self) -> list[str]:  # numpydoc ignore=RT01
        """`no`, `sphere` or `vort`; "" where an image could not be used or a flag withholds its label."""
        return self._texts("label")

    @property
    def probabilities(self) -> NDArray[np.float64]:  # numpydoc ignore=RT01
        """(B, 3) in the order of `d4lens.classes.CLASSES`; NaN where an image could not be used."""
        return np.asarray(self.table[PROBABILITIES], np.float64)

    def plot(self) -> Figure:
        """Draw the probabilities as bars, one an image, of the first 40 images.

        Returns
        -------
        matplotlib.figure.Figure
            The drawing.
        """
        shown = self.probabilities[:_SHOWN]
        figure = Figure(figsize=(7, 1.2 + 0.25 * len(shown)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(shown))
        for name, column, colour in zip(CLASSES, shown.T, _COLOURS, strict=True):
            width = np.nan_to_num(column)
            axes.barh(range(len(shown)), width, left=left, label=name, color=colour)
            left += width
        axes.set_yticks(range(len(shown)), [Path(name).name for name in self.names[:_SHOWN]])
        axes.set(xlim=(0, 1), xlabel="probability", title=_title("probabilities", len(shown), len(self.table)))
        axes.invert_yaxis()
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.0), ncols=3)
        return figure


@dataclass(frozen=True)
class Fits(_Answers):
    """The smooth lenses of B images.

    Attributes
    ----------
    table : pandas.DataFrame
        One row an image, columns `d4lens.inference.pipeline.FIT_TABLE_COLUMNS`, then the seven parameters' standard
        deviations as `sigma_NAME`, then whatever else was fitted with its own.
    """

    @property
    def parameters(self) -> NDArray[np.float64]:  # numpydoc ignore=RT01
        """(B, 7) in the order of `FIT_COLUMNS`; lengths in arcsec; NaN where an image could not be used."""
        return np.asarray(self.table[list(FIT_COLUMNS)], np.float64)

    @property
    def converged(self) -> NDArray[np.bool_]:  # numpydoc ignore=RT01
        """(B,) whether the fit found a minimum."""
        return np.asarray(self.table["converged"], np.bool_)

    @property
    def sigma(self) -> NDArray[np.float64]:  # numpydoc ignore=RT01
        """(B, 7) standard deviations of `parameters`."""
        return np.asarray(self.table[[f"sigma_{name}" for name in FIT_COLUMNS]], np.float64)

    @property
    def freed(self) -> pd.DataFrame:  # numpydoc ignore=RT01
        """The columns of what was fitted beyond the seven parameters."""
        others = [*FIT_TABLE_COLUMNS, *(f"sigma_{name}" for name in FIT_COLUMNS), ARCS_CHI2]
        return self.table.drop(columns=others, errors="ignore")

    def plot(self) -> Figure:
        """Draw each parameter, and chi2, of the first 40 images.

        Returns
        -------
        matplotlib.figure.Figure
            The drawing.
        """
        n = min(len(self.table), _SHOWN)
        figure = Figure(figsize=(9, 5), layout="constrained")
        figure.suptitle(_title("smooth lenses", n, len(self.table)))
        columns = [*zip(FIT_COLUMNS, self.parameters[:n].T, strict=True), ("chi2 per pixel", self.chi2[:n])]
        good = self.converged[:n]
        for axes, (name, values) in zip(figure.subplots(2, 4).flat, columns, strict=True):
            axes.plot(np.flatnonzero(good), values[good], "o", color="C0")
            axes.plot(np.flatnonzero(~good), values[~good], "x", color="C3")
            axes.set(title=name, xlabel="image")
        return figure


@dataclass(frozen=True)
class Detections(_Answers):
    """Masses beside the main lenses of images.

    Attributes
    ----------
    table : pandas.DataFrame
        One row a candidate, columns `d4lens.inference.mass_search.DETECT_COLUMNS`; rank 0 where an image has none.
    """

    @property
    def candidates(self) -> pd.DataFrame:  # numpydoc ignore=RT01
        """The candidates' rows alone."""
        return self.table[self.table["rank"] > 0]


@dataclass(frozen=True)
class Simulated:
    """Simulated lenses.

    Attributes
    ----------
    images : (B, N, N) float32
        Photon counts.
    labels : list of str
        The class of each.
    truth : Truth
        What is in each.
    observation : Observation
        Pixels, PSF and sky that they were made for.
    """

    images: NDArray[np.float32]
    labels: list[str]
    truth: Truth
    observation: Observation

    def to_pandas(self) -> pd.DataFrame:
        """Return the truth.

        Returns
        -------
        pandas.DataFrame
            One row an image, columns `d4lens.simulator.COLUMNS`; lengths in arcsec.
        """
        return self.truth.images.copy()

    def plot(self) -> Figure:
        """Draw the first 12 images, square root of the counts.

        Returns
        -------
        matplotlib.figure.Figure
            The drawing.
        """
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
    """A trained network.

    Attributes
    ----------
    classifier : Classifier
        The network and what its file says of it.
    """

    classifier: Classifier

    @property
    def config(self) -> dict[str, Any]:  # numpydoc ignore=RT01
        """What the weights' file says of the network: name, observation, training's fingerprint and others."""
        return self.classifier.config

    def predict(
        self,
        images: AnyImages,
        *,
        tta: bool = True,
        force_label: bool = False,
        free: str | Sequence[str] = (),
        model: str = AUTO,
        progress: bool = False,
        **known: Unpack[Known],
    ) -> Predictions:
        """Classify images.

        Parameters
        ----------
        images : paths, arrays, tensors, HDUs and others, as above
        tta : bool
            Average over the eight symmetries of the square.
        force_label : bool
            Give a label also where a flag withholds it.
        free : names
            Parameters of the smooth lens to fit beyond the preset's.
        model : str
            The smooth lens: "specialist", "marginal" or "auto".
        progress : bool
            Show a bar.
        **known
            What is known of the instrument, as above.

        Returns
        -------
        Predictions
            An image that cannot be used keeps its row, with the reason as its flag.

        Raises
        ------
        D4LensError
            For paths without images, objects that hold none, and values out of range.
        """
        how = {"tta": tta, "force_label": force_label, "progress": progress}
        switches = {name: arguments.switch(name, value) for name, value in how.items()}
        instrument, names = _instrument(known), arguments.names_of(free)
        answer = classify(
            arguments.image_sources(images), self.classifier, instrument=instrument, free=names, model=model, **switches
        )
        return Predictions(answer.table)

    def explain(
        self,
        image: AnyImages,
        *,
        free: str | Sequence[str] = (),
        model: str = AUTO,
        masses: bool = False,
        **known: Unpack[Known],
    ) -> Explanation:
        """Explain what the answer for one image rests on.

        Parameters
        ----------
        image, free, model
            As `predict` takes them.
        masses : bool
            Look for masses beside the main lens too.
        **known
            As `predict` takes it.

        Returns
        -------
        Explanation
            Its `plot()` draws it.

        Raises
        ------
        D4LensError
            For several images, one that cannot be used, and a network that draws no convergence.
        """
        found = arguments.image_sources(image)
        if len(found) != 1:
            raise D4LensError(f"{len(found)} images were given to be explained; give one")
        names, looked, instrument = arguments.names_of(free), arguments.switch("masses", masses), _instrument(known)
        (source,) = instrument.joined(found)
        return explain_source(source, self.classifier, instrument=instrument, free=names, model=model, masses=looked)


def load_model(path: str | Path | None = None) -> Model:
    """Load a trained network.

    Parameters
    ----------
    path : str or Path, optional
        A model.safetensors; None takes the package's two.

    Returns
    -------
    Model

    Raises
    ------
    D4LensError
        For a file that holds no network of this project.
    """
    return Model(load_classifier(arguments.path_or_none("path", path)))


def predict(
    images: AnyImages,
    weights: str | Path | None = None,
    *,
    tta: bool = True,
    force_label: bool = False,
    free: str | Sequence[str] = (),
    model: str = AUTO,
    progress: bool = False,
    **known: Unpack[Known],
) -> Predictions:
    """Classify images with the network in a file.

    Parameters
    ----------
    images
        As `Model.predict` takes them.
    weights : str or Path, optional
        A model.safetensors; None takes the package's two.
    tta, force_label, free, model, progress, **known
        As `Model.predict` takes them.

    Returns
    -------
    Predictions

    Raises
    ------
    D4LensError
        As `load_model` and `Model.predict` do.
    """
    how: dict[str, Any] = {"tta": tta, "force_label": force_label, "free": free, "model": model, "progress": progress}
    return load_model(weights).predict(images, **how, **known)


def fit(
    images: AnyImages,
    *,
    free: str | Sequence[str] = (),
    model: str = AUTO,
    progress: bool = False,
    **known: Unpack[Known],
) -> Fits:
    """Fit a lens without substructure to each image: SIE, shear, source, PSF, sky and, where it shines, the galaxy's light.

    Parameters
    ----------
    images, free, model, progress, **known
        As `Model.predict` takes them.

    Returns
    -------
    Fits

    Raises
    ------
    D4LensError
        For paths without images, values out of range and names in `free` that are no parameters.
    """
    names = arguments.names_of(free)
    shown = arguments.switch("progress", progress)
    found = arguments.image_sources(images)
    return Fits(fit_sources(found, instrument=_instrument(known), free=names, model=model, progress=shown).table)


def detect(
    images: AnyImages,
    *,
    profile: str = "point",
    p_false: float = 0.01,
    z_lens: AnyNumber = None,
    z_source: AnyNumber = None,
    sensitivity: str | Path | None = None,
    sigma: float = 5.0,
    force: bool = False,
    free: str | Sequence[str] = (),
    model: str = AUTO,
    progress: bool = False,
    **known: Unpack[Known],
) -> Detections:
    """Look for masses beside the main lens: candidates with place, mass and how sure they are.

    Parameters
    ----------
    profile : str
        Of the masses: "point" or "sis".
    p_false : float
        Listed is what noise alone shows anywhere in the image with less than this probability.
    z_lens, z_source : float, optional
        Redshifts, for solar masses.
    sensitivity : str or Path, optional
        FITS file to write: at each place the mass that would have shown.
    sigma : float
        Standard deviations at which it would have.
    force : bool
        List candidates also where a flag withholds them.
    images, free, model, progress, **known
        As `Model.predict` takes them.

    Returns
    -------
    Detections

    Raises
    ------
    D4LensError
        For paths without images and values out of range.
    """
    place = arguments.path_or_none("sensitivity", sensitivity)
    numbers = {"p_false": p_false, "z_lens": z_lens, "z_source": z_source, "sigma": sigma}
    numbers = {name: None if value is None else arguments.to_number(name, value) for name, value in numbers.items()}
    forced, shown = arguments.switch("force", force), arguments.switch("progress", progress)
    wanted = Wanted(profile, **numbers, sensitivity=Path(place) if place else None, force=forced)  # type: ignore[arg-type]
    found, names = arguments.image_sources(images), arguments.names_of(free)
    return Detections(
        detect_sources(
            found, instrument=_instrument(known), free=names, model=model, wanted=wanted, progress=shown
        ).table
    )


def simulate(
    name: str = "deeplense", n: int = 3, seed: int = 0, overrides: Mapping[str, Any] | None = None
) -> Simulated:
    """Simulate images of a preset, the classes in turn.

    Parameters
    ----------
    name : str
        The preset.
    n : int
        How many images.
    seed : int
        The same seed gives the same images.
    overrides : mapping, optional
        Priors to replace, as `d4lens.simulator.preset` takes them.

    Returns
    -------
    Simulated

    Raises
    ------
    D4LensError
        For an unknown preset or prior.
    PhysicsError
        For a value outside its range.
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


def _instrument(known: Mapping[str, Any]) -> Instrument:
    return read_instrument(**arguments.instrument_values(known, Known.__annotations__))


def _title(what: str, shown: int, all_of_them: int) -> str:
    return what if shown == all_of_them else f"{what} of the first {shown} of {all_of_them} images"
