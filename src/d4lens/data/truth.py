"""What is in each simulated image: the tables `truth.csv` and `subhalos.csv` of an archive."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from d4lens.errors import D4LensError

_ROD = ("rod_mass", "rod_theta_E", "rod_half_length", "rod_phi", "rod_x", "rod_y")
COLUMNS = (
    *("path", "preset", "seed", "split", "index", "class", "halo_mass", "z_lens", "z_source"),
    *("theta_E", "lens_q", "lens_phi", "gamma1", "gamma2"),
    *("source_x", "source_y", "source_q", "source_phi", "e1", "e2", "sersic_amplitude", "sersic_R_e", "sersic_n"),
    *("exposure", "background_rms", "n_subhalos", *_ROD),
)
OWN_COLUMNS = (
    *("lens_x", "lens_y", "image_psf_sigma", "psf_error", "image_sky", "snr", "n_clumps", "second_component"),
    *("light_peak", "light_R_e", "light_n", "light_q", "light_phi"),
)
"""Further columns of a preset whose images have these of their own."""
SUBHALO_COLUMNS = ("path", "mass", "theta_E", "x", "y")


@dataclass(frozen=True)
class Truth:
    """What is in each image.

    Values carry 12 significant digits, so that the tables written as CSV hold them exactly and an image rendered from the file is the
    image in the archive.

    Attributes
    ----------
    images : DataFrame
        One row an image, columns COLUMNS, of some presets OWN_COLUMNS too. Lengths in arcsec, angles in radians from +x towards
        +y, `rod_mass` in halo masses. What an image does not have is NaN.
    subhalos : DataFrame
        One row a point mass, columns SUBHALO_COLUMNS: mass in solar masses, theta_E, x and y in arcsec.
    """

    images: pd.DataFrame
    subhalos: pd.DataFrame

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, rows: Sequence[int] | NDArray[np.intp]) -> "Truth":
        """Return the truth of the images in these rows, in this order.

        Parameters
        ----------
        rows : sequence of int
            Row numbers of `images`.

        Returns
        -------
        Truth
            These images with their masses.
        """
        images = self.images.iloc[rows].reset_index(drop=True)
        return Truth(images, self.subhalos[self.subhalos["path"].isin(images["path"])].reset_index(drop=True))

    def subhalo_arrays(self) -> list[NDArray[np.float64]]:
        """Return for each image an array (3, n) of theta_E, x, y in arcsec, in the order of the table.

        Returns
        -------
        list of numpy.ndarray
            One (3, n) float64 an image; n may be 0.
        """
        values = np.stack([self.subhalos[name].to_numpy(np.float64) for name in ("theta_E", "x", "y")])
        where = pd.Index(self.images["path"]).get_indexer(self.subhalos["path"])
        if (np.diff(where) < 0).any():  # a table somebody has sorted
            order = np.argsort(where, kind="stable")
            where, values = where[order], values[:, order]
        edges = np.searchsorted(where, np.arange(len(self.images) + 1))
        return [np.ascontiguousarray(values[:, a:b]) for a, b in pairwise(edges)]

    @classmethod
    def from_csv(cls, images: object, subhalos: object) -> "Truth":
        """Read `truth.csv` and `subhalos.csv` to the last bit.

        Parameters
        ----------
        images, subhalos : path or open file
            The two tables.

        Returns
        -------
        Truth

        Raises
        ------
        D4LensError
            If a column is missing.
        """
        read = {"float_precision": "round_trip", "keep_default_na": False, "na_values": [""]}
        tables = [pd.read_csv(file, **read) for file in (images, subhalos)]
        for table, columns in zip(tables, (COLUMNS, SUBHALO_COLUMNS)):
            missing = [column for column in columns if column not in table]
            if missing:
                raise D4LensError(f"a truth table lacks the columns {', '.join(missing)}: was it written by simulate?")
        return cls(*tables)
