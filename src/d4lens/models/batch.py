"""The batch of images that is handed from the data and the smooth fit to the networks and their losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from d4lens.errors import D4LensError
from d4lens.lensing import d4
from d4lens.macrofit.columns import FIT_COLUMNS


class SmoothFit(Protocol):
    """What is read of a `macrofit.FitResult`: maps (B, N, N), and columns (B, 7) in the order of FIT_COLUMNS."""

    @property
    def model_counts(self) -> Tensor:
        """Counts of the smooth lens, (B, N, N)."""
        ...

    @property
    def residual(self) -> Tensor:
        """Residual in standard deviations, (B, N, N)."""
        ...

    @property
    def columns(self) -> Tensor:
        """Parameters (B, 7)."""
        ...


@dataclass
class LensBatch:
    """Images with what the smooth fit says of them and, for training, their truth.

    An entry that nobody needs is None. All others have the same first length.

    Attributes
    ----------
    counts : Tensor
        (B, N, N) photon counts.
    residual : Tensor, optional
        (B, N, N) residual of the smooth fit in standard deviations of the noise.
    significance : Tensor, optional
        (B, N, N) standard deviations by which one more mass at each pixel would explain the residual.
    fit : Tensor, optional
        (B, 7) parameters of the smooth lens in the order of FIT_COLUMNS; lengths in arcsec.
    label : Tensor, optional
        (B,) true class as an index into CLASSES.
    index : Tensor, optional
        (B,) row of each image in its split.
    kappa : Tensor, optional
        (B, N, N) true convergence, substructure smoothed to two pixels: its own alone, or the whole lens's.
    """

    counts: Tensor
    residual: Tensor | None = None
    significance: Tensor | None = None
    fit: Tensor | None = None
    label: Tensor | None = None
    index: Tensor | None = None
    kappa: Tensor | None = None

    @classmethod
    def of_fit(cls, counts: Tensor, result: SmoothFit, significance: Tensor) -> "LensBatch":
        """Make what the networks read from images and their smooth fit, in float32.

        Parameters
        ----------
        counts : Tensor
            (B, N, N) photon counts. A pixel without data, NaN, gets the smooth lens's counts and residual 0.
        result : SmoothFit
            The fit of a smooth lens to `counts`.
        significance : Tensor
            (B, N, N) of `macrofit.significance` for this fit.

        Returns
        -------
        LensBatch
            Counts, residual, significance and fit.
        """
        return cls(
            torch.where(torch.isfinite(counts), counts.float(), result.model_counts),
            result.residual,
            significance,
            result.columns.float(),
        )

    @classmethod
    def joined(cls, parts: Sequence["LensBatch"]) -> "LensBatch":
        """Concatenate batches that hold the same entries.

        Parameters
        ----------
        parts : sequence of LensBatch
            At least one.

        Returns
        -------
        LensBatch
            Their images, in this order.
        """
        held = [part.entries() for part in parts]
        return cls(**{name: torch.cat([entries[name] for entries in held]) for name in held[0]})

    def __len__(self) -> int:
        return len(self.counts)

    def entries(self) -> dict[str, Tensor]:
        """Return the entries that are there, by name.

        Returns
        -------
        dict of str to Tensor
            The tensors themselves, not copies.
        """
        every = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in every if value is not None}

    def need(self, name: str) -> Tensor:
        """Return one entry.

        Parameters
        ----------
        name : str
            The entry's name, such as "residual".

        Returns
        -------
        Tensor
            The entry, with the shape that the class gives it.

        Raises
        ------
        D4LensError
            If the batch is without it.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            made_by = "preprocess" if name in ("label", "index", "kappa") else "macrofit"
            raise D4LensError(
                f"these images come without their {name}, which is needed here; run the {made_by} stage first"
            )
        return value

    def rows(self, chosen: Any) -> "LensBatch":
        """Return some of the images.

        Parameters
        ----------
        chosen : slice, or an index of a tensor's first axis
            Which images.

        Returns
        -------
        LensBatch
            Every entry of them.
        """
        return self._each(lambda value: value[chosen])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "LensBatch":
        """Return the batch on another device; its floating-point entries, and these alone, in another dtype.

        Parameters
        ----------
        device : torch.device or str, optional
            Where to; None leaves them.
        dtype : torch.dtype, optional
            A floating-point type; None leaves them.

        Returns
        -------
        LensBatch
            The batch there.
        """
        return self._each(lambda value: value.to(device, dtype if value.is_floating_point() else None))

    def turned(self, g: int) -> "LensBatch":
        """Return the batch that a telescope turned by element `g` of D4 would have delivered.

        Maps turn as `d4.transform`, the fit as `turned_fit`; label and index stay.

        Parameters
        ----------
        g : int
            An element of D4, 0 to 7.

        Returns
        -------
        LensBatch
            The turned batch.
        """
        turned = {name: d4.transform(value, g) if value.ndim >= 3 else value for name, value in self.entries().items()}
        if self.fit is not None:
            turned["fit"] = turned_fit(self.fit, g)
        return LensBatch(**turned)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "LensBatch":
        return LensBatch(**{name: change(value) for name, value in self.entries().items()})


def turned_fit(fit: Tensor, g: int) -> Tensor:
    """Turn fit parameters (..., 7), in the order of FIT_COLUMNS, with the image under element `g` of D4.

    The source position is a vector; shear and ellipticity are spin-2; the Einstein radius is a scalar.

    Parameters
    ----------
    fit : Tensor
        (..., 7), in the order of FIT_COLUMNS.
    g : int
        An element of D4, 0 to 7.

    Returns
    -------
    Tensor
        The turned parameters (..., 7).
    """
    column: dict[str, Any] = dict(zip(FIT_COLUMNS, fit.unbind(-1), strict=True))
    for first, second, turn in (
        ("source_x", "source_y", d4.transform_points),
        ("gamma1", "gamma2", d4.transform_spin2_values),
        ("e1", "e2", d4.transform_spin2_values),
    ):
        column[first], column[second] = turn(column[first], column[second], g)
    return torch.stack([column[name] for name in FIT_COLUMNS], dim=-1)
