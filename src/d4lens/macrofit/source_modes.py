"""What a Sérsic source is not: smooth relative changes of its light, a Gaussian process in the source plane.

The source's brightness is s(beta) [1 + g(beta)], s the fitted Sérsic profile and g of mean zero and covariance
amplitude² exp(-|d|² / 2 length²) on a square that rides on its centre. g = sum_k c_k g_k with c_k ~ N(0, 1), the g_k the
leading eigenvectors of that covariance times the root of their eigenvalue: the linear part of a semilinear inversion
(Warren & Dye 2003; Suyu et al. 2006). The covariance of a square grid is a product of one along x and one along y, so
each mode is f_i(u) f_j(v) and costs a product a ray. Between the nodes f goes on by the covariance itself (Nyström), so
that g has a gradient everywhere and fades outside the square.
"""

import torch
from torch import Tensor

_JITTER = 1e-9  # of the covariance's diagonal
_FINE = 20  # entries of the table a length: linear between them, the modes are right to 3e-4


class SourceModes:
    """The modes g_k.

    Parameters
    ----------
    n_modes : int
        How many are kept; 0 is the Sérsic source alone.
    half_width : float
        Arcsec, of the square about the source's centre.
    step : float
        Arcsec between its nodes.
    length : float
        Arcsec over which the light is free to change.
    amplitude : float
        Standard deviation of g; 1 lets the corrections be as bright as the profile.
    dtype : torch.dtype
        Of the modes.
    device : torch.device or str
        Where they are computed.
    """

    def __init__(
        self,
        n_modes: int = 400,
        half_width: float = 1.2,
        step: float = 0.06,
        length: float = 0.08,
        amplitude: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        nodes = torch.linspace(-half_width, half_width, round(2 * half_width / step) + 1, dtype=torch.float64)
        gram = torch.exp(-0.5 * ((nodes[:, None] - nodes) / length) ** 2)
        values, vectors = torch.linalg.eigh(gram + _JITTER * torch.eye(len(nodes), dtype=torch.float64))
        values, vectors = values.flip(0), vectors.flip(1)
        order = (values[:, None] * values).flatten().argsort(descending=True, stable=True)[:n_modes].sort().values
        # For each function along x the leading ones along y: a staircase, so that products are of whole slices.
        self.i, self.j = order // len(nodes), order % len(nodes)
        self._steps = torch.bincount(self.i).tolist()
        n_axis = int(torch.cat([self.i, self.j]).max()) + 1 if len(order) else 0
        self.n_modes, self.amplitude, self.half_width, self.length = len(order), amplitude, half_width, length
        self.variance_kept = float((values[self.i] * values[self.j]).sum() / values.sum() ** 2)
        # A factor of the amplitude in each of the two functions.
        weights = amplitude**0.5 * vectors[:, :n_axis] / values[:n_axis].sqrt()
        self._reach, self._pitch = half_width + 4 * length, length / _FINE
        fine = torch.arange(-self._reach, self._reach + self._pitch, self._pitch, dtype=torch.float64)
        away = (fine[:, None] - nodes) / length
        near = torch.exp(-0.5 * away * away)
        values_and_slopes = torch.cat([near @ weights, (away * near) @ weights / -length], 1)
        values_and_slopes[[0, -2, -1]] = 0.0  # rays further out end on the table's last entry
        self._table, self._n_axis = values_and_slopes.to(device, dtype), n_axis

    def along(self, u: Tensor, *, slopes: bool = False) -> tuple[Tensor, Tensor | None]:
        """Compute the functions f_i along one axis.

        Parameters
        ----------
        u : Tensor
            (P,) coordinates in arcsec from the source's centre.
        slopes : bool
            Whether to compute their slopes too.

        Returns
        -------
        values : Tensor
            (P, n).
        slopes : Tensor or None
            (P, n) per arcsec, if asked for.
        """
        place = ((u.to(self._table) + self._reach) / self._pitch).clamp(0, len(self._table) - 1.001)
        lower = place.long()
        table = self._table if slopes else self._table[:, : self._n_axis]
        found = torch.lerp(table[lower], table[lower + 1], (place - lower)[:, None])
        return found[:, : self._n_axis], found[:, self._n_axis :] if slopes else None

    def at(self, u: Tensor, v: Tensor) -> Tensor:
        """Compute all modes at places in the source plane.

        Parameters
        ----------
        u, v : Tensor
            (P,) coordinates in arcsec from the source's centre.

        Returns
        -------
        Tensor
            (P, K).
        """
        return self.product(self.along(u)[0], self.along(v)[0])

    def product(self, along_u: Tensor, along_v: Tensor) -> Tensor:
        """Multiply the functions along either axis to all modes.

        Parameters
        ----------
        along_u, along_v : Tensor
            (P, n), as `along` computes them.

        Returns
        -------
        Tensor
            (P, K).
        """
        out = along_u.new_empty(len(along_u), self.n_modes)
        first = 0
        for i, n in enumerate(self._steps):
            torch.mul(along_u[:, i : i + 1], along_v[:, :n], out=out[:, first : first + n])
            first += n
        return out

    def table(self, coefficients: Tensor) -> Tensor:
        """Arrange coefficients as the matrix C of g = f(u) C f(v).

        Parameters
        ----------
        coefficients : Tensor
            (K,).

        Returns
        -------
        Tensor
            (n, n).
        """
        return coefficients.new_zeros(self._n_axis, self._n_axis).index_put((self.i, self.j), coefficients)
