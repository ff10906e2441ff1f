"""Masses beside the main lens: candidates, how sure they are, and which could have been seen."""

from d4lens.detection.candidates import Candidate, Found, search
from d4lens.detection.detectable import sensitivity_map
from d4lens.detection.false_alarms import FalseAlarms, law, simulate_false_alarms
from d4lens.detection.filters import PROFILES, MatchedFilter, Profile, matched_filter, power, whitened
from d4lens.detection.masses import LensWithMasses
from d4lens.detection.scenes import Scene, scene_of

__all__ = [
    "PROFILES",
    "Candidate",
    "FalseAlarms",
    "Found",
    "LensWithMasses",
    "MatchedFilter",
    "Profile",
    "Scene",
    "law",
    "matched_filter",
    "power",
    "scene_of",
    "search",
    "sensitivity_map",
    "simulate_false_alarms",
    "whitened",
]
