"""What the stage `macrofit` writes for the networks. A training depends on this file, not on how the lens is fitted."""

FIT_COLUMNS = ("theta_E", "gamma1", "gamma2", "source_x", "source_y", "e1", "e2")
"""The parameters a network is given: lengths in arcsec; e1, e2 the source's (1-q)/(1+q) (cos 2phi, sin 2phi)."""
MAPS = ("residual", "significance")
"""What the networks read of a fit beside its parameters, each (n, N, N)."""
SMOOTH_LENS_FILE = "smooth_lens.json"
"""File beside the maps that says whose they are where they are not the specialist's."""
