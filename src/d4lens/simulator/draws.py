"""Every parameter of every image, drawn from preset, seed, split and index alone."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from d4lens.classes import CLASSES
from d4lens.data.archive import ARCHIVE_SPLITS
from d4lens.data.truth import COLUMNS, OWN_COLUMNS, SUBHALO_COLUMNS, Truth
from d4lens.errors import D4LensError, PhysicsError
from d4lens.lensing.cosmology import theta_E_luminosity
from d4lens.simulator.priors import COMPONENT_RANGES, PARAMETER_RANGES, SUBHALO_RANGES, Preset

# Streams of one image: disjoint stretches of one counter.
_PARAMETER_STREAM, _SUBHALO_STREAM, _NOISE_STREAM, _COMPONENT_STREAM = range(4)
_SLOTS = 64  # uniform numbers set aside for the parameters: more can be appended without moving a draw


def stream(preset: str, seed: int, split: str, index: int, which: int) -> np.random.Generator:
    """Return a random stream of one image: Philox 4x64 keyed by (preset, seed, split), its counter by the image.

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

    Parameters
    ----------
    preset : str
        The preset's name.
    seed : int
        At least 0.
    split : str
        One of SPLITS.
    index : int
        The image's number.
    which : int
        The stream's number.

    Returns
    -------
    numpy.random.Generator
        The stream.
    """
    digest = hashlib.blake2b(f"{preset}/{seed}/{split}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, which, index]))


def noise_stream(preset: str, seed: int, split: str, index: int) -> np.random.Generator:
    """Return the stream of an image's noise; it is the same with and without its substructure.

    Parameters
    ----------
    preset : str
        The preset's name.
    seed : int
        At least 0.
    split : str
        One of SPLITS.
    index : int
        The image's number.

    Returns
    -------
    numpy.random.Generator
        The stream.
    """
    return stream(preset, seed, split, index, _NOISE_STREAM)


def components(preset: Preset, row: Mapping[str, Any]) -> list[tuple[float, float, float, float]]:
    """Return what an image's source has beyond its first component.

    They follow, as the noise does, from the preset's name, the seed, the split and the index.

    Parameters
    ----------
    preset : Preset
        What the image was drawn from.
    row : mapping
        A row of `Truth.images`.

    Returns
    -------
    list of tuple of float
        (flux as a fraction of the first component's, R_e in arcsec, x and y in arcsec from the first) of each.
    """
    found = []
    n_clumps, second = int(row["n_clumps"]), int(row["second_component"])
    names = list(COMPONENT_RANGES)
    u = stream(row["preset"], row["seed"], row["split"], row["index"], _COMPONENT_STREAM).random((1 + n_clumps, 4))
    for i, numbers in enumerate(u.tolist()):
        kinds = names[:4] if i == 0 else names[4:]
        if i == 0 and not second:
            continue
        offset, azimuth, flux, R_e = (
            preset.priors[name].quantile(one) for name, one in zip(kinds, numbers, strict=True)
        )
        found.append((flux, R_e, offset * math.cos(azimuth), offset * math.sin(azimuth)))
    return found


def check_seed(seed: int) -> None:
    """Check a seed.

    Parameters
    ----------
    seed : int
        What should be a whole number of at least 0.

    Raises
    ------
    PhysicsError
        If it is none.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise PhysicsError(f"seed must be a whole number of at least 0, not {seed}")


def own_class(index: int) -> str:
    """Return the class of an index where none is asked for: the three take turns.

    Parameters
    ----------
    index : int
        The image's number.

    Returns
    -------
    str
        One of CLASSES.
    """
    return CLASSES[index % len(CLASSES)]


def image_path(split: str, index: int) -> str:
    """Return the path in the data set of the image `index` of a split; numbers start at 1 in each class.

    Parameters
    ----------
    split : str
        One of SPLITS.
    index : int
        The image's number in the split.

    Returns
    -------
    str
        Such as "train/sphere/12.npy".
    """
    return f"{split}/{own_class(index)}/{index // len(CLASSES) + 1}.npy"


def draw(
    preset: Preset | tuple[Preset, ...],
    seed: int,
    indices: Iterable[int],
    substructure: str = "own",
    split: str = "train",
) -> Truth:
    """Draw the parameters of images.

    Everything but the substructure, and the noise, is the same for the same index whatever is asked here.

    Parameters
    ----------
    preset : Preset or tuple of Preset
        What the images are drawn from. Several take turns, each for one image of every class.
    seed : int
        At least 0.
    indices : iterable of int
        The images, each at least 0.
    substructure : str
        "own" (the class of the index: no, sphere, vort in turn), "none", or a class for all of them.
    split : {"train", "val"}
        The split.

    Returns
    -------
    Truth
        One row an index.

    Raises
    ------
    PhysicsError
        If the seed or an index is out of range.
    D4LensError
        If the substructure or split is unknown.
    """
    if isinstance(preset, str):
        raise D4LensError(f"draw takes a Preset: pass simulate.preset({preset!r})")
    check_seed(seed)
    if split not in ARCHIVE_SPLITS:
        raise D4LensError(f"split must be one of {', '.join(ARCHIVE_SPLITS)}, not {split!r}")
    if substructure not in ("own", "none", *CLASSES):
        raise D4LensError(f"substructure must be own, none, {', '.join(CLASSES)}, not {substructure!r}")
    presets = preset if isinstance(preset, tuple) else (preset,)
    images: list[dict[str, object]] = []
    subhalos: list[tuple[object, ...]] = []
    for index in indices:
        index = int(index)
        if not 0 <= index < 2**64:
            raise PhysicsError(f"index must lie in [0, 2^64), not {index}")
        turn = presets[index // len(CLASSES) % len(presets)]
        row, points = _draw_image(turn, int(seed), split, index, substructure)
        images.append(row)
        subhalos.extend(points)
    columns = [*COLUMNS, *(OWN_COLUMNS if "snr" in presets[0].priors else ())]
    return Truth(pd.DataFrame(images, columns=columns), pd.DataFrame(subhalos, columns=list(SUBHALO_COLUMNS)))


@lru_cache(maxsize=1024)
def _theta_E(mass: float, z_lens: float, z_source: float) -> float:
    return float(theta_E_luminosity(mass, z_lens, z_source))


def _round(value: float) -> float:
    return float(f"{value:.12g}")


def _draw_image(
    preset: Preset, seed: int, split: str, index: int, substructure: str
) -> tuple[dict[str, object], list[tuple[object, ...]]]:
    u = stream(preset.name, seed, split, index, _PARAMETER_STREAM).random(_SLOTS)
    p = {name: preset.priors[name].quantile(u[i]) for i, name in enumerate(PARAMETER_RANGES) if name in preset.priors}
    if "theta_E" not in p:
        p["theta_E"] = _theta_E(p["halo_mass"], p["z_lens"], p["z_source"])
    if "source_x" not in p:
        p["source_x"] = p["source_offset"] * math.cos(p["source_azimuth"])
        p["source_y"] = p["source_offset"] * math.sin(p["source_azimuth"])
    theta_E = _round(p["theta_E"])
    ellipticity = (1 - p["source_q"]) / (1 + p["source_q"])
    label = own_class(index) if substructure == "own" else "no" if substructure == "none" else substructure
    path = image_path(split, index) if substructure == "own" else f"{split}/{label}/{index + 1}.npy"
    values = {
        **{name: p.get(name, math.nan) for name in ("halo_mass", "z_lens", "z_source", "lens_q", "lens_phi")},
        "theta_E": theta_E,
        "gamma1": p["gamma"] * math.cos(2 * p["gamma_phi"]),
        "gamma2": p["gamma"] * math.sin(2 * p["gamma_phi"]),
        "e1": ellipticity * math.cos(2 * p["source_phi"]),
        "e2": ellipticity * math.sin(2 * p["source_phi"]),
        **{name: p[name] for name in ("source_x", "source_y", "source_q", "source_phi")},
        **{name: p[name] for name in ("sersic_amplitude", "sersic_R_e", "sersic_n")},
        **{name: p.get(name, math.nan) for name in ("exposure", "background_rms")},
    }
    at_x, at_y = p.get("lens_x", 0.0), p.get("lens_y", 0.0)
    if "snr" in p:
        values |= {name: p[name] for name in OWN_COLUMNS if name in p}
        values |= {"n_clumps": int(p["n_clumps"]), "second_component": int(p["second_component"] >= 0.5)}
        values |= {
            "source_x": p["source_x"] + at_x,
            "source_y": p["source_y"] + at_y,
            "light_peak": p["light_peak"] if p["light_peak"] >= 1 else 0.0,
            "light_q": min(max(p["lens_q"] + p["light_q_offset"], 0.3), 1.0),
            "light_phi": p["lens_phi"] + p["light_phi_offset"],
        }
    points: list[tuple[object, ...]] = []
    if label == "vort":
        values |= {
            "rod_mass": p["rod_mass"],
            # Same lens and source planes: theta_E² goes as the mass.
            "rod_theta_E": theta_E * math.sqrt(p["rod_mass"]),
            "rod_half_length": p["rod_half_length"],
            "rod_phi": p["rod_phi"],
            "rod_x": at_x + p["rod_offset"] * math.cos(p["rod_azimuth"]),
            "rod_y": at_y + p["rod_offset"] * math.sin(p["rod_azimuth"]),
        }
    elif label == "sphere":
        u = stream(preset.name, seed, split, index, _SUBHALO_STREAM).random((preset.n_subhalos, 3))
        mass, radius, azimuth = (preset.priors[name] for name in SUBHALO_RANGES)
        for um, ur, ua in u.tolist():
            m, r, a = mass.quantile(um), radius.quantile(ur), azimuth.quantile(ua)
            theta = theta_E * math.sqrt(m / p["halo_mass"])
            points.append((path, *(_round(v) for v in (m, theta, at_x + r * math.cos(a), at_y + r * math.sin(a)))))
    row: dict[str, object] = {name: _round(value) for name, value in values.items()}
    row |= {"path": path, "preset": preset.name, "seed": seed, "split": split, "index": index, "class": label}
    row["n_subhalos"] = len(points)
    return row, points
