"""Masses beside the main lens: candidates, how sure they are, and which could have been seen."""

from d4lens.detection.candidates import Candidate, Found, search
from d4lens.detection.detectable import sensitivity_map
from d4lens.detection.false_alarms import FalseAlarms, law, simulate
from d4lens.detection.masses import LensWithMasses
from d4lens.detection.profiled import PROFILES, Profile, Profiled, power, profiled, whitened
from d4lens.detection.scenes import Scene, row_of, scene_of

__all__ = [
    "PROFILES",
    "Candidate",
    "FalseAlarms",
    "Found",
    "LensWithMasses",
    "Profile",
    "Profiled",
    "Scene",
    "law",
    "power",
    "profiled",
    "row_of",
    "scene_of",
    "search",
    "sensitivity_map",
    "simulate",
    "whitened",
]
