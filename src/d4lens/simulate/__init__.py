"""Simulated lens images with their truth: presets as data, a renderer, and the archive that stands in for the set."""

from d4lens.simulate.dataset import join_shards, read_truth, write_archive, write_shard
from d4lens.simulate.draw import COLUMNS, SUBHALO_COLUMNS, Truth, draw, draw_pair
from d4lens.simulate.fields import substructure_convergence, substructure_deflection
from d4lens.simulate.priors import PARAMETERS, PRESETS, SUBHALO_PARAMETERS, Preset, Prior, preset
from d4lens.simulate.render import render

__all__ = [
    "COLUMNS",
    "PARAMETERS",
    "PRESETS",
    "SUBHALO_COLUMNS",
    "SUBHALO_PARAMETERS",
    "Preset",
    "Prior",
    "Truth",
    "draw",
    "draw_pair",
    "join_shards",
    "preset",
    "read_truth",
    "render",
    "substructure_convergence",
    "substructure_deflection",
    "write_archive",
    "write_shard",
]
