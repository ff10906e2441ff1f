"""Simulated lenses for the studies: images no network was trained on, with their truth, as the networks read them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d4lens import lensing
from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.inference.pipeline import DEFAULT_PRESET, lens_of, network_batch
from d4lens.macrofit import fit_smooth_lens
from d4lens.models.batch import LensBatch
from d4lens.observation import Observation, bin_pixels
from d4lens.simulator import Truth, draw, preset, render


@dataclass(frozen=True)
class Samples:
    """Lenses as networks read them, and what is in them.

    Attributes
    ----------
    observation : Observation
        Pixels of the images.
    batch : LensBatch
        Counts, residual, significance and fit of B lenses.
    smooth : Tensor
        (B, N, N) counts of the fitted smooth lens.
    truth : Truth
        Of the simulator.
    """

    observation: Observation
    batch: LensBatch
    smooth: Tensor
    truth: Truth

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def labels(self) -> NDArray[np.int64]:  # numpydoc ignore=RT01
        """(B,) class indices."""
        return np.array(self.truth.images["class"].map(CLASSES.index), np.int64)

    def rows(self, chosen: slice) -> LensBatch:
        """Take the batch of some lenses.

        Parameters
        ----------
        chosen : slice
            Which lenses.

        Returns
        -------
        LensBatch
            The batch.
        """
        return self.batch.rows(chosen)


def simulate_samples(
    n: int, seed: int, observation: Observation, classes: str = "all", substructure: str = "own"
) -> Samples:
    """Simulate and fit lenses of the preset behind the shipped weights.

    Parameters
    ----------
    n : int
        Number of lenses.
    seed : int
        One that no training used gives images that no network has seen.
    observation : Observation
        Pixels of the images.
    classes : str
        "all" three in turn, or "substructure" for spheres and vortices in turn.
    substructure : str
        As `simulator.draw` takes it; "none" gives the same lenses, sources and noise without their masses.

    Returns
    -------
    Samples

    Raises
    ------
    D4LensError
        For pixels that are no whole multiple of the preset's.
    """
    chosen = preset(DEFAULT_PRESET)
    native = chosen.observation
    factor = max(1, round(observation.pixel_scale / native.pixel_scale))
    if native.binned(factor) != observation:
        raise D4LensError(
            f"the studies simulate {native.n_pixels} pixels of {native.pixel_scale:g} arcsec or a whole multiple, and this "
            f"network was trained on {observation.n_pixels} of {observation.pixel_scale:g}; leave the study out of the profile's `studies`"
        )
    wanted = range(n) if classes == "all" else [i for i in range(2 * n) if i % len(CLASSES)][:n]
    truth = draw(chosen, seed, wanted, substructure, split="val")
    counts = bin_pixels(render(truth, chosen), factor).float()
    lens = lens_of(observation)
    result = fit_smooth_lens(counts, lens)
    return Samples(observation, network_batch(counts, result, lens), result.model_counts, truth)


def pairs(n: int, seed: int, observation: Observation) -> tuple[Samples, Samples]:
    """Simulate lenses with their substructure, spheres and vortices in turn, and the same without it.

    Both have the same macro-lens, source and noise stream. Each is fitted by itself as an observer would.

    Parameters
    ----------
    n : int
        How many.
    seed : int
        Of the lenses.
    observation : Observation
        The grid, PSF and sky, after binning.

    Returns
    -------
    Samples
        With substructure.
    Samples
        Without.
    """
    return (
        simulate_samples(n, seed, observation, "substructure"),
        simulate_samples(n, seed, observation, "substructure", "none"),
    )


def distance(samples: Samples) -> Tensor:
    """Measure the distance of each pixel to the substructure.

    It is that to the most massive subhalo, or to the nearest point of the rod.

    Parameters
    ----------
    samples : Samples
        B images.

    Returns
    -------
    Tensor
        (B, N, N) arcsec; NaN where an image has none.
    """
    observation = samples.observation
    x, y = lensing.grid(observation.n_pixels, observation.pixel_scale, torch.float64)
    found = torch.full((len(samples), *x.shape), torch.nan, dtype=torch.float64)
    rods = samples.truth.images[["rod_x", "rod_y", "rod_phi", "rod_half_length"]].to_numpy(np.float64)
    for i, points in enumerate(samples.truth.subhalo_arrays()):
        if points.size:
            _, x0, y0 = points[:, points[0].argmax()]
            found[i] = torch.hypot(x - x0, y - y0)
        elif np.isfinite(rods[i]).all():
            x0, y0, phi, half_length = rods[i]
            dx, dy = x - x0, y - y0
            along = dx * np.cos(phi) + dy * np.sin(phi)
            found[i] = torch.hypot(
                dx - along.clamp(-half_length, half_length) * np.cos(phi),
                dy - along.clamp(-half_length, half_length) * np.sin(phi),
            )
    return found


def radius(samples: Samples) -> Tensor:
    """Measure each pixel's distance from the lens's centre less the true Einstein radius.

    Parameters
    ----------
    samples : Samples
        B lenses.

    Returns
    -------
    Tensor
        (B, N, N) arcsec.
    """
    x, y = lensing.grid(samples.observation.n_pixels, samples.observation.pixel_scale, torch.float64)
    theta_E = torch.from_numpy(samples.truth.images["theta_E"].to_numpy(np.float64, copy=True))
    return torch.hypot(x, y) - theta_E[:, None, None]
