"""The lens equation as a layer without parameters: convergence in, deflection, source and re-lensed image out."""

import torch
from torch import Tensor, nn

from d4lens.errors import PhysicsError
from d4lens.lensing import PoissonSolver, grid, shear, sis, to_image_plane, to_source_plane, unchecked
from d4lens.macrofit.columns import FIT_COLUMNS
from d4lens.observation import Observation

# Coverage, in rays, below which a source pixel counts as unseen: it bounds the gradient at the rim of the caustics.
_SEEN = 1e-2


class LensEngine(nn.Module):
    """alpha = alpha_smooth + grad(psi), lap(psi) = 2 kappa; beta = theta - alpha; I -> S(beta) -> I again.

    Everything runs in float32 at least, under autocast too. There is no parameter; the kernels and the grid are buffers.

    Parameters
    ----------
    observation : Observation
        Pixels of the images.
    source_half_width : float
        Half the side of the source grid in arcsec.
    source_pixels : int
        Its pixels a side.

    Raises
    ------
    PhysicsError
        For a source grid wider than the image.
    """

    x: Tensor
    y: Tensor

    def __init__(self, observation: Observation, source_half_width: float, source_pixels: int) -> None:
        super().__init__()
        if not 0 < source_half_width <= observation.half_width:
            raise PhysicsError(
                f"source_half_width must be above 0 and at most half the image's side, {observation.half_width} arcsec, "
                f"not {source_half_width}"
            )
        self.source_half_width, self.source_pixels = source_half_width, source_pixels
        self.poisson = PoissonSolver(observation.n_pixels, observation.pixel_scale)
        x, y = grid(observation.n_pixels, observation.pixel_scale, dtype=torch.float64)
        self.register_buffer("x", x, persistent=False)
        self.register_buffer("y", y, persistent=False)

    def forward(self, kappa: Tensor, signal: Tensor, fit: Tensor | None = None) -> dict[str, Tensor]:
        """Lens and unlens one batch.

        Parameters
        ----------
        kappa : Tensor
            (B, N, N) convergence; with `fit`, that beyond the smooth lens.
        signal : Tensor
            (B, N, N) counts above the sky.
        fit : Tensor, optional
            (B, 7) parameters of the smooth lens (FIT_COLUMNS, arcsec), whose deflection is added in closed form.

        Returns
        -------
        dict of Tensor
            `alpha_x`, `alpha_y` (arcsec) and `relensed` (counts), each (B, N, N); `source` (counts) and `coverage` (rays
            a pixel), each (B, n, n).
        """
        with torch.autocast(kappa.device.type, enabled=False), unchecked():
            kappa = kappa if kappa.dtype == torch.float64 else kappa.float()
            signal, x, y = signal.to(kappa.dtype), self.x.to(kappa.dtype), self.y.to(kappa.dtype)
            alpha_x, alpha_y = self.poisson.deflection(kappa)
            if fit is not None:
                lens = {name: value[:, None, None] for name, value in zip(FIT_COLUMNS, fit.to(kappa.dtype).unbind(1))}
                for smooth_x, smooth_y in (
                    sis(x, y, lens["theta_E"]),
                    shear(x, y, lens["gamma1"], lens["gamma2"]),
                ):
                    alpha_x, alpha_y = alpha_x + smooth_x, alpha_y + smooth_y
            beta_x, beta_y = x - alpha_x, y - alpha_y
            source, coverage = to_source_plane(
                signal, beta_x, beta_y, self.source_pixels, self.source_half_width, min_coverage=_SEEN
            )
            relensed = to_image_plane(source, beta_x, beta_y, self.source_half_width)
        return {
            "alpha_x": alpha_x,
            "alpha_y": alpha_y,
            "source": source,
            "coverage": coverage,
            "relensed": relensed,
        }
