"""Simulated lens images with their truth: presets as data, a renderer, and the archive that stands in for the set."""

from d4lens.data.truth import COLUMNS, SUBHALO_COLUMNS, Truth
from d4lens.simulator.dataset import DataSet, join_shards, write_archive
from d4lens.simulator.draws import draw
from d4lens.simulator.priors import PARAMETER_RANGES, PRESETS, SUBHALO_RANGES, Distribution, Preset, preset
from d4lens.simulator.renderer import render
from d4lens.simulator.substructure import substructure_convergence

__all__ = [
    "COLUMNS",
    "PARAMETER_RANGES",
    "PRESETS",
    "SUBHALO_COLUMNS",
    "SUBHALO_RANGES",
    "DataSet",
    "Distribution",
    "Preset",
    "Truth",
    "draw",
    "join_shards",
    "preset",
    "render",
    "substructure_convergence",
    "write_archive",
]
