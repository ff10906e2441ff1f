"""The matched filter for one more mass at every place at once, with all that the smooth lens could absorb taken out.

It is the statistic of `d4lens.macrofit.significance`, for any profile and any number of residuals: what the data say of one more
mass's strength at a place, its information, and the significance of trials with noise alone.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from d4lens.errors import D4LensError
from d4lens.macrofit.significance import PRIOR_WIDTH, Kernels
from d4lens.macrofit.smooth_lens import SmoothLensModel

Profile = Literal["point", "sis"]
"""Of a mass. Its strength, in which deflections are linear, is theta_E² (arcsec²) for `point` and theta_E for `sis`."""
PROFILES: tuple[Profile, ...] = get_args(Profile)

_CHUNK = 8  # residuals at once: more leave the cache
_RIDGE = 1e-9  # keeps the Fisher matrix of a parameter that the image says nothing of from being singular


def power(profile: Profile) -> int:
    """Return the power of theta_E that a profile's strength is.

    Parameters
    ----------
    profile : str
        One of PROFILES.

    Returns
    -------
    int
        2 for `point`, 1 for `sis`.

    Raises
    ------
    D4LensError
        For no profile.
    """
    if profile not in PROFILES:
        raise D4LensError(f"a mass has the profile {' or '.join(PROFILES)}, not {profile!r}")
    return 2 if profile == "point" else 1


class MatchedFilter:
    """One image's matched filter.

    Parameters
    ----------
    root : Tensor
        (N, N) one over the noise's standard deviation in counts; 0 where there are no data.
    shift : Tensor
        (2, N, N) derivatives of the counts by the source's place, per arcsec.
    columns : Tensor
        (F, N, N) derivatives of the counts by all that is profiled out.
    step : float
        arcsec per pixel.
    profile : str
        One of PROFILES.
    precision : Tensor, optional
        (F,) what the priors add to the Fisher matrix's diagonal; None: nothing.
    """

    def __init__(
        self,
        root: Tensor,
        shift: Tensor,
        columns: Tensor,
        step: float,
        profile: Profile = "point",
        precision: Tensor | None = None,
    ) -> None:
        self.width = PRIOR_WIDTH ** (power(profile) / 2)
        self.root, self.n = root.float(), root.shape[-1]
        self._shift = (shift * root).float()
        self._kernels = Kernels(self.n, step, profile)
        flat = (columns * root).flatten(1).double()
        self._scale = flat.norm(dim=1).clamp_min(1e-15)
        self._columns = flat / self._scale[:, None]
        fisher = self._columns @ self._columns.T + _RIDGE * torch.eye(len(flat), dtype=torch.float64)
        self._loose = torch.zeros(len(flat), dtype=torch.float64)
        if precision is not None:
            self._loose = precision.sqrt() / self._scale
            fisher += torch.diag(self._loose.square())
        overlap = torch.cat(
            [self._explained(part.float()) for part in self._columns.view(-1, *root.shape).split(_CHUNK)]
        )
        overlap = overlap.flatten(1).double()
        self._absorbed = torch.linalg.solve(fisher, overlap)
        x, y = self._shift
        products = self._kernels.correlate(torch.stack([x * x, x * y, y * y]), slice(2, 5))
        left = products.flatten().double() - (overlap * self._absorbed).sum(0)
        self.information = left.clamp_min(0).view(self.n, self.n)
        """(N, N) float64, inverse variance of a mass's strength at each pixel's centre."""
        self._absorbed = self._absorbed.float()
        self._spread = (self.information + self.width**-2).rsqrt().float()

    def explained(self, residual: Tensor, pull: Tensor | None = None) -> Tensor:
        """Compute what a mass at each pixel's centre explains: its likeliest strength times its information.

        The log likelihood ratio of a mass of strength s is s explained - s² information / 2.

        Parameters
        ----------
        residual : Tensor
            (N, N) in standard deviations.
        pull : Tensor, optional
            (F,) the priors' precision times how far from their means the parameters of `columns` are.

        Returns
        -------
        Tensor
            (N, N) float64.
        """
        return self._profiled(residual[None], None if pull is None else (pull / self._scale)[None])[0].double()

    def strength(self, residual: Tensor) -> Tensor:
        """Estimate the likeliest strength of a mass at each pixel's centre.

        Parameters
        ----------
        residual : Tensor
            (N, N) in standard deviations.

        Returns
        -------
        Tensor
            (N, N) strengths: theta_E² (arcsec²) for `point`, theta_E (arcsec) for `sis`.
        """
        likeliest: Tensor = self.explained(residual) / (self.information + self.width**-2)
        return likeliest

    def significance(self, residuals: Tensor, pulls: Tensor | None = None) -> Tensor:
        """Compute the significance of a mass at each pixel's centre, for several residuals.

        Parameters
        ----------
        residuals : Tensor
            (K, N, N) in standard deviations.
        pulls : Tensor, optional
            (K, F), as `pull` of `explained`.

        Returns
        -------
        Tensor
            (K, N, N) in standard deviations.
        """
        found: Tensor = self._profiled(residuals, pulls) * self._spread
        return found

    def highest(self, residuals: Tensor) -> Tensor:
        """Take the largest significance anywhere in the image, a few residuals at a time, which takes little memory.

        Parameters
        ----------
        residuals : Tensor
            (K, N, N) in standard deviations.

        Returns
        -------
        Tensor
            (K,) in standard deviations.
        """
        return torch.cat([self.significance(part).flatten(1).amax(1) for part in residuals.split(_CHUNK)])

    def trials(self, n: int, generator: torch.Generator) -> Tensor:
        """Take the largest significance of white noise, with parameters as their priors have them.

        Parameters
        ----------
        n : int
            Number of trials.
        generator : torch.Generator
            Draws the noise.

        Returns
        -------
        Tensor
            (n,) in standard deviations.
        """
        noise = torch.randn((n, self.n, self.n), generator=generator)
        if not self._loose.any():
            return self.highest(noise)
        pulls = torch.randn((n, len(self._loose)), generator=generator, dtype=torch.float64) * self._loose
        parts = zip(noise.split(_CHUNK), pulls.split(_CHUNK), strict=True)
        return torch.cat([self.significance(*part).flatten(1).amax(1) for part in parts])

    def _profiled(self, residuals: Tensor, pulls: Tensor | None = None) -> Tensor:
        residuals = residuals.float() * (self.root > 0)
        left = residuals.flatten(1).double() @ self._columns.T
        if pulls is not None:
            left -= pulls
        out: Tensor = self._explained(residuals)
        return out.sub_((left.float() @ self._absorbed).view_as(out))

    def _explained(self, residuals: Tensor) -> Tensor:
        """Inner products (K, N, N) of residuals with the template of a unit mass at each pixel's centre."""
        return self._kernels.correlate(residuals[:, None] * self._shift, slice(0, 2))


def matched_filter(
    counts: Tensor, parameters: Tensor, model: SmoothLensModel, profile: Profile = "point"
) -> MatchedFilter:
    """Return the matched filter about a fit.

    Parameters
    ----------
    counts : Tensor
        (N, N) photons; not finite: no data.
    parameters : Tensor
        (F,) of the fit, in the order of `model.free`, which must hold source_x and source_y.
    model : SmoothLensModel
        What was fitted.
    profile : str
        Of the mass, one of PROFILES.

    Returns
    -------
    MatchedFilter
        The filter.

    Raises
    ------
    D4LensError
        For no profile.
    """
    stack = model.image_and_jacobian(parameters[None])[0].cpu()
    expected, columns = stack[0], stack[1:]
    root = expected.rsqrt() * torch.isfinite(counts)
    shift = columns[[model.free.index("source_x"), model.free.index("source_y")]]
    precision = torch.tensor([model.priors[name].sigma ** -2 for name in model.free], dtype=torch.float64)
    return MatchedFilter(root, shift, columns, model.observation.pixel_scale * model.binning, profile, precision)


def whitened(counts: Tensor, parameters: Tensor, model: SmoothLensModel) -> Tensor:
    """Return the residual of a fit in standard deviations.

    Parameters
    ----------
    counts : Tensor
        (N, N) photons; not finite: no data.
    parameters : Tensor
        (F,) of the fit, in the order of `model.free`.
    model : SmoothLensModel
        What was fitted.

    Returns
    -------
    Tensor
        (N, N) float32, 0 where there are no data.
    """
    expected = model.image(parameters[None])[0].cpu()
    counts = counts.to(expected)
    return torch.where(torch.isfinite(counts), (counts - expected) * expected.rsqrt(), 0.0).float()
