"""Presets as data: what is observed, what every parameter is drawn from, and where each number comes from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from d4lens.errors import D4LensError, PhysicsError
from d4lens.observation import Observation


@dataclass(frozen=True)
class Distribution:
    """A one-dimensional distribution on [low, high].

    It is drawn by its quantile function, one uniform number a value, so that changing one prior leaves every other parameter of an
    image as it was.

    Attributes
    ----------
    kind : {"fixed", "uniform", "log-uniform", "power-law"}
        The distribution's form.
    low, high : float
        Its bounds.
    unit : str
        Their unit.
    source : str
        Where the numbers come from.
    slope : float
        Of a power law, dN/dx ∝ x^slope.
    """

    kind: str
    low: float
    high: float
    unit: str = ""
    source: str = ""
    slope: float = 0.0

    def quantile(self, u: float) -> float:
        """Return the value below which a fraction `u` in [0, 1) of the distribution lies.

        Parameters
        ----------
        u : float
            The fraction.

        Returns
        -------
        float
            The value, in the distribution's unit.
        """
        if self.kind == "fixed":
            return self.low
        if self.kind == "uniform":
            return self.low + (self.high - self.low) * u
        if self.kind == "log-uniform" or self.slope == -1.0:
            return float(self.low * (self.high / self.low) ** u)
        p = self.slope + 1.0
        low, high = self.low**p, self.high**p
        return float((low + (high - low) * u) ** (1.0 / p))

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"{self.low:g} {self.unit}".rstrip()
        slope = f"^{self.slope:g}" if self.kind == "power-law" else ""
        return f"{self.kind}{slope}({self.low:g}, {self.high:g}) {self.unit}".rstrip()


def fixed(value: float, unit: str = "", source: str = "") -> Distribution:
    """Return the prior of a parameter that is `value` in every image.

    Parameters
    ----------
    value : float
        In `unit`.
    unit : str
        Such as "arcsec"; empty for a pure number.
    source : str
        Where the value comes from.

    Returns
    -------
    Distribution
        The prior.
    """
    return Distribution("fixed", value, value, unit, source)


def uniform(low: float, high: float, unit: str = "", source: str = "") -> Distribution:
    """Return the uniform prior between `low` and `high`.

    Parameters
    ----------
    low, high : float
        In `unit`.
    unit : str
        Such as "arcsec"; empty for a pure number.
    source : str
        Where the range comes from.

    Returns
    -------
    Distribution
        The prior.
    """
    return Distribution("uniform", low, high, unit, source)


def log_uniform(low: float, high: float, unit: str = "", source: str = "") -> Distribution:
    """Return the prior whose logarithm is uniform between those of `low` and `high`, both above 0.

    Parameters
    ----------
    low, high : float
        In `unit`, both above 0.
    unit : str
        Such as "arcsec"; empty for a pure number.
    source : str
        Where the range comes from.

    Returns
    -------
    Distribution
        The prior.
    """
    return Distribution("log-uniform", low, high, unit, source)


def power_law(low: float, high: float, slope: float, unit: str = "", source: str = "") -> Distribution:
    """Return the prior with dN/dx proportional to x^slope between `low` and `high`, both above 0.

    Parameters
    ----------
    low, high : float
        In `unit`, both above 0.
    slope : float
        The exponent.
    unit : str
        Such as "arcsec"; empty for a pure number.
    source : str
        Where the range comes from.

    Returns
    -------
    Distribution
        The prior.
    """
    return Distribution("power-law", low, high, unit, source, slope)


@dataclass(frozen=True)
class Range:
    """Physical range of a parameter.

    Attributes
    ----------
    low : float
        Lower bound, exclusive if `open`.
    high : float
        Upper bound, inclusive.
    open : bool
        Whether `low` is left out.
    """

    low: float
    high: float
    open: bool = False

    def check(self, name: str, value: float) -> None:
        """Check that a value lies in the range.

        Parameters
        ----------
        name : str
            The parameter, for the message.
        value : float
            Its value.

        Raises
        ------
        PhysicsError
            If it lies outside.
        """
        inside = (value > self.low if self.open else value >= self.low) and value <= self.high
        if not (math.isfinite(value) and inside):
            left = "(" if self.open else "["
            raise PhysicsError(f"{name} must lie in {left}{self.low:g}, {self.high:g}], not {value:g}")


_ANGLE = Range(-math.inf, math.inf)
_PLACE = Range(-1e4, 1e4)
_POSITIVE = Range(0.0, math.inf, open=True)
_NON_NEGATIVE = Range(0.0, math.inf)
_AXIS_RATIO = Range(0.0, 1.0, open=True)

# Every parameter an image can have. Its place in this table is its place in the image's random stream: append only.
PARAMETER_RANGES: dict[str, Range] = {
    "halo_mass": _POSITIVE,
    "z_lens": _POSITIVE,
    "z_source": _POSITIVE,
    "theta_E": _POSITIVE,
    "lens_q": _AXIS_RATIO,
    "lens_phi": _ANGLE,
    "gamma": Range(0.0, 0.99),
    "gamma_phi": _ANGLE,
    "source_x": _PLACE,
    "source_y": _PLACE,
    "source_offset": _NON_NEGATIVE,
    "source_azimuth": _ANGLE,
    "source_q": _AXIS_RATIO,
    "source_phi": _ANGLE,
    "sersic_amplitude": _POSITIVE,
    "sersic_R_e": _POSITIVE,
    "sersic_n": Range(0.5, 10.0),  # the range of b_n = 1.9992 n - 0.3271
    "rod_mass": _POSITIVE,
    "rod_half_length": _POSITIVE,
    "rod_phi": _ANGLE,
    "rod_offset": _NON_NEGATIVE,
    "rod_azimuth": _ANGLE,
    "exposure": _POSITIVE,
    "background_rms": _NON_NEGATIVE,
    # Of images that are not all alike. Lengths in arcsec; `light_peak` in peaks of the arcs, both blurred.
    "lens_x": _PLACE,
    "lens_y": _PLACE,
    "image_psf_sigma": _POSITIVE,
    "psf_error": Range(-0.5, 0.5),  # relative, of the width that the fit is told
    "image_sky": _POSITIVE,
    "snr": _POSITIVE,
    "n_clumps": Range(0.0, 100.0),  # rounded down
    "second_component": Range(0.0, 1.0),  # one from 0.5 on
    "light_peak": _NON_NEGATIVE,  # none below 1
    "light_R_e": _POSITIVE,
    "light_n": Range(0.5, 10.0),
    "light_q_offset": Range(-0.9, 0.9),
    "light_phi_offset": _ANGLE,
}
# Drawn once a point mass, in this order.
SUBHALO_RANGES: dict[str, Range] = {
    "subhalo_mass": _POSITIVE,
    "subhalo_radius": _NON_NEGATIVE,
    "subhalo_azimuth": _ANGLE,
}
# Drawn once a component of the source beyond its first, in this order; the second component, then the clumps.
COMPONENT_RANGES: dict[str, Range] = {
    "component_offset": _NON_NEGATIVE,
    "component_azimuth": _ANGLE,
    "component_flux": _POSITIVE,
    "component_R_e": _POSITIVE,
    "clump_offset": _NON_NEGATIVE,
    "clump_azimuth": _ANGLE,
    "clump_flux": _POSITIVE,
    "clump_R_e": _POSITIVE,
}
_OF_EACH_IMAGE = frozenset((*list(PARAMETER_RANGES)[list(PARAMETER_RANGES).index("lens_x") :], *COMPONENT_RANGES))
# Two ways of saying one thing: a preset has one of them, an override of the first drops the second.
_REPLACES = {
    "theta_E": ("z_lens", "z_source"),
    "source_x": ("source_offset", "source_azimuth"),
    "source_y": ("source_offset", "source_azimuth"),
    "source_offset": ("source_x", "source_y"),
    "source_azimuth": ("source_x", "source_y"),
}
_OBSERVATION = ("n_pixels", "pixel_scale", "psf_sigma", "sky")


@dataclass(frozen=True)
class Preset:
    """A generative model of lens images.

    Attributes
    ----------
    name : str
        Also the key of the random stream, so an overridden preset shares its draws with the original.
    observation : Observation
        Grid, PSF and sky.
    priors : mapping of str to Distribution
        By the name of the parameter. Angles in radians from +x towards +y, lengths in arcsec, masses in solar masses.
    noise : {"poisson", "deeplensesim"}
        "poisson": counts ~ Poisson(signal + sky). "deeplensesim": Poisson(signal) + Gaussian background, which DeepLenseSim then
        passes through Poisson once more.
    n_subhalos : int
        Point masses in a `sphere` image.
    corrected : bool
        With "deeplensesim" noise, leave the second Poisson draw out.
    """

    name: str
    observation: Observation
    priors: Mapping[str, Distribution] = field(repr=False)
    noise: str = "poisson"
    n_subhalos: int = 25
    corrected: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return everything that decides the images, for the archive's `preset.json`.

        Returns
        -------
        dict
            What JSON takes.
        """
        return {
            "name": self.name,
            "observation": self.observation.to_dict(),
            "noise": self.noise,
            "corrected": self.corrected,
            "n_subhalos": self.n_subhalos,
            "priors": {
                name: {"kind": p.kind, "low": p.low, "high": p.high, "slope": p.slope, "unit": p.unit}
                for name, p in self.priors.items()
            },
        }

    def __str__(self) -> str:
        """Return the table of priors, one parameter a line, with its source."""
        width = max(map(len, self.priors))
        return "\n".join(
            f"{name:{width}s}  {prior!s:45s}  {prior.source}".rstrip() for name, prior in self.priors.items()
        )


_FITTED = "fitted to genuine images"
_INFERRED = "inferred from genuine images"
# A prior U(-2 pi, 0) meant in radians and handed to an interface in degrees: every axis lies within 6.3 degrees of x.
_PA_LOW = -math.radians(2 * math.pi)

DEEPLENSE = Preset(
    name="deeplense",
    observation=Observation(n_pixels=150, pixel_scale=0.05, psf_sigma=0.08625, sky=10.0),
    priors={
        "halo_mass": fixed(1e12, "Msun", "arXiv:1909.07346"),
        "z_lens": uniform(0.4, 0.6, "", _INFERRED),
        "z_source": uniform(0.8, 1.2, "", _INFERRED),
        "lens_q": fixed(1.0, "", _FITTED),
        "lens_phi": fixed(0.0, "rad"),
        "gamma": uniform(0.0, 0.3, "", _FITTED),
        "gamma_phi": uniform(_PA_LOW, 0.0, "rad", _FITTED),
        "source_offset": uniform(0.0, 0.5, "arcsec", _INFERRED),
        "source_azimuth": uniform(0.0, 2 * math.pi, "rad", _INFERRED),
        "source_q": uniform(0.4, 1.0, "", _INFERRED),
        "source_phi": uniform(_PA_LOW, 0.0, "rad", _INFERRED),
        "sersic_amplitude": fixed(100.0, "counts per pixel at R_e", _FITTED),
        "sersic_R_e": fixed(0.5, "arcsec", _FITTED),
        "sersic_n": fixed(1.5, "", _FITTED),
        "rod_mass": uniform(0.028, 0.058, "halo masses", _FITTED),
        "rod_half_length": uniform(0.7, 1.85, "arcsec", _FITTED),
        "rod_phi": uniform(0.0, math.pi, "rad", _FITTED),
        "rod_offset": uniform(0.1, 1.3, "arcsec", _FITTED),
        "rod_azimuth": uniform(0.0, 2 * math.pi, "rad", _FITTED),
        "subhalo_mass": power_law(1e6, 1e10, -0.9, "Msun", "DeepLenseSim, draw_old_cdm_sub_masses"),
        "subhalo_radius": uniform(0.25, 2.0, "arcsec", "DeepLenseSim, make_old_cdm"),
        "subhalo_azimuth": uniform(0.0, 2 * math.pi, "rad", "DeepLenseSim, make_old_cdm"),
    },
)

_MODEL_I = "DeepLenseSim, Model I"
# DeepLenseSim's vortex is 100 equal points on linspace(-L, L): each stands for a cell of 2L/99, 100 cells in all.
_CELLS = 100 / 99

# A lens that a user brings is turned as it likes: networks that are to read it train on some of these.
DEEPLENSE_TURNED = replace(
    DEEPLENSE,
    name="deeplense_turned",
    priors={
        **DEEPLENSE.priors,
        "gamma_phi": uniform(0.0, math.pi, "rad", "isotropy"),
        "source_phi": uniform(0.0, math.pi, "rad", "isotropy"),
    },
)

MODEL_I = Preset(
    name="model-i",
    observation=Observation(n_pixels=150, pixel_scale=0.05, psf_sigma=0.087 / math.sqrt(8 * math.log(2)), sky=0.0),
    priors={
        "halo_mass": fixed(1e12, "Msun", _MODEL_I),
        "z_lens": fixed(0.5, "", _MODEL_I),
        "z_source": fixed(1.0, "", _MODEL_I),
        "lens_q": fixed(0.9 / 1.1, "", _MODEL_I + ": e1 = 0.1, e2 = 0"),
        "lens_phi": fixed(0.0, "rad", _MODEL_I),
        "gamma": fixed(0.05, "", _MODEL_I),
        "gamma_phi": fixed(0.0, "rad", _MODEL_I),
        "source_x": uniform(-0.35, 0.35, "arcsec", _MODEL_I),
        "source_y": uniform(-0.35, 0.35, "arcsec", _MODEL_I),
        "source_q": fixed((1 - math.sqrt(0.02)) / (1 + math.sqrt(0.02)), "", _MODEL_I + ": e1 = -0.1, e2 = 0.1"),
        "source_phi": fixed(3 * math.pi / 8, "rad", _MODEL_I + ": e1 = -0.1, e2 = 0.1"),
        "sersic_amplitude": fixed(20 * 0.05**2, "counts per second and pixel at R_e", _MODEL_I + ": 20 per arcsec²"),
        "sersic_R_e": fixed(0.25, "arcsec", _MODEL_I),
        "sersic_n": fixed(1.0, "", _MODEL_I),
        "rod_mass": fixed(0.03, "halo masses", _MODEL_I),
        "rod_half_length": log_uniform(
            0.03 * _CELLS, 3.0 * _CELLS, "arcsec", _MODEL_I + ": 3e-24/m, m = 10^U(-24,-22)"
        ),
        "rod_phi": uniform(0.0, 2 * math.pi, "rad", _MODEL_I),
        "rod_offset": fixed(0.0, "arcsec", _MODEL_I),
        "rod_azimuth": fixed(0.0, "rad", _MODEL_I),
        "exposure": log_uniform(1e3, 10**3.5, "s", _MODEL_I),
        "background_rms": fixed(0.01, "counts per second", _MODEL_I),
        "subhalo_mass": power_law(1e6, 1e10, -0.9, "Msun", _MODEL_I),
        "subhalo_radius": uniform(0.25, 2.0, "arcsec", _MODEL_I),
        "subhalo_azimuth": uniform(0.0, 2 * math.pi, "rad", _MODEL_I),
    },
    noise="deeplensesim",
)

_WIDE = "wide on purpose: the range of lenses that surveys find"
_SLACS = "SLACS: mass and light share axes (Koopmans et al. 2006)"

SURVEY = Preset(
    name="survey",
    observation=Observation(n_pixels=150, pixel_scale=0.05, psf_sigma=0.07, sky=20.0),
    priors={
        **DEEPLENSE.priors,
        "lens_q": uniform(0.4, 1.0, "", _WIDE),
        "lens_phi": uniform(0.0, math.pi, "rad", "isotropy"),
        "gamma": uniform(0.0, 0.25, "", _WIDE),
        "gamma_phi": uniform(0.0, math.pi, "rad", "isotropy"),
        "source_phi": uniform(0.0, math.pi, "rad", "isotropy"),
        "sersic_amplitude": fixed(100.0, "before the scale that the signal-to-noise sets"),
        "sersic_R_e": log_uniform(0.15, 0.9, "arcsec", _WIDE),
        "sersic_n": uniform(0.5, 5.0, "", _WIDE),
        "lens_x": uniform(-0.1, 0.1, "arcsec", "cut out to two pixels"),
        "lens_y": uniform(-0.1, 0.1, "arcsec", "cut out to two pixels"),
        "image_psf_sigma": log_uniform(0.04, 0.12, "arcsec", "HST, JWST and Euclid"),
        "psf_error": uniform(-0.05, 0.05, "", "a PSF is known to 5 %"),
        "image_sky": log_uniform(2.0, 200.0, "counts per pixel", "snapshots to deep fields"),
        "snr": log_uniform(10.0, 300.0, "", _WIDE + "; of the arcs, over all pixels"),
        "n_clumps": uniform(0.0, 9.0, "", _WIDE),
        "second_component": uniform(0.0, 1.0, "", "in half of the images"),
        "light_peak": log_uniform(0.1, 100.0, "peaks of the arcs", "no light below 1, a third of the images"),
        "light_R_e": log_uniform(0.4, 2.5, "arcsec", "SLACS: Bolton et al. 2008"),
        "light_n": uniform(3.0, 5.0, "", "near a de Vaucouleurs profile"),
        "light_q_offset": uniform(-0.1, 0.1, "", _SLACS),
        "light_phi_offset": uniform(-0.17, 0.17, "rad", _SLACS),
        "component_offset": uniform(0.0, 0.5, "arcsec", _WIDE),
        "component_azimuth": uniform(0.0, 2 * math.pi, "rad", "isotropy"),
        "component_flux": log_uniform(0.1, 1.0, "fluxes of the first", _WIDE),
        "component_R_e": log_uniform(0.15, 0.6, "arcsec", _WIDE),
        "clump_offset": uniform(0.0, 0.7, "arcsec", _WIDE),
        "clump_azimuth": uniform(0.0, 2 * math.pi, "rad", "isotropy"),
        "clump_flux": log_uniform(0.005, 0.1, "fluxes of the first", "star-forming clumps: Livermore et al. 2015"),
        "clump_R_e": log_uniform(0.04, 0.15, "arcsec", "star-forming clumps: Livermore et al. 2015"),
    },
)

# For learning what substructure looks like behind such lenses. A fit with lens light takes ten times as long, and a mass
# shows at a signal-to-noise of some hundreds: that of the published images is 800 to 1,100.
SURVEY_DEEP = replace(
    SURVEY,
    name="survey_deep",
    priors={
        **SURVEY.priors,
        "snr": log_uniform(30.0, 1000.0, "", "up to that of the published images; of the arcs, over all pixels"),
        "light_peak": fixed(0.5, "peaks of the arcs", "no light"),
    },
)

SURVEY_BRIGHT = replace(
    SURVEY_DEEP,
    name="survey_bright",
    priors={
        **SURVEY_DEEP.priors,
        "snr": log_uniform(300.0, 1000.0, "", "where a mass shows; of the arcs, over all pixels"),
    },
)

# One entry a preset. The command line, params.yaml and the Python interface offer whatever stands here.
PRESETS: dict[str, Preset] = {
    entry.name: entry
    for entry in (
        DEEPLENSE,
        DEEPLENSE_TURNED,
        MODEL_I,
        SURVEY,
        SURVEY_DEEP,
        SURVEY_BRIGHT,
    )
}


def preset(name: str, overrides: Mapping[str, Any] | None = None) -> Preset:
    """Return a preset by its name, some of its priors replaced.

    Parameters
    ----------
    name : str
        A key of PRESETS.
    overrides : mapping, optional
        A parameter's name to a number (fixes it), a pair [low, high] (uniform) or a mapping with `kind`, `low`, `high` and, for a
        power law, `slope`. Besides the priors: `n_pixels`, `pixel_scale` (arcsec), `psf_sigma` (arcsec), `sky` (counts per pixel),
        `n_subhalos` and `corrected` (true or false), one value each.

    Returns
    -------
    Preset
        The preset, of the same name.

    Raises
    ------
    D4LensError
        If the preset, a name or a form is unknown.
    PhysicsError
        If a value lies outside its physical range.
    """
    if name not in PRESETS:
        raise D4LensError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    result = PRESETS[name]
    overrides = dict(overrides or {})
    parameters = {**PARAMETER_RANGES, **SUBHALO_RANGES, **COMPONENT_RANGES}
    known = [key for key in parameters if key in result.priors or key not in _OF_EACH_IMAGE]
    known += [*_OBSERVATION, "n_subhalos", "corrected"]
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise D4LensError(f"preset {name} has no {', '.join(unknown)}; it knows {', '.join(known)}")
    for key in overrides:
        clash = [other for other in _REPLACES.get(key, ()) if other in overrides]
        if clash:
            raise D4LensError(f"{key} and {clash[0]} fix the same thing: set one of them")

    priors = dict(result.priors)
    seen: dict[str, Any] = {key: _number(key, overrides[key]) for key in _OBSERVATION if key in overrides}
    if "n_pixels" in seen:
        if seen["n_pixels"] != int(seen["n_pixels"]):
            raise PhysicsError(f"n_pixels must be a whole number, not {seen['n_pixels']:g}")
        seen["n_pixels"] = int(seen["n_pixels"])
    observation = Observation.from_dict({**result.observation.to_dict(), **seen})
    result = replace(result, observation=observation)
    if "n_subhalos" in overrides:
        count = overrides["n_subhalos"]
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
            raise PhysicsError(f"n_subhalos must be a whole number of at least 0, not {count}")
        result = replace(result, n_subhalos=int(count))
    if "corrected" in overrides:
        if not isinstance(overrides["corrected"], bool):
            raise D4LensError(f"corrected must be true or false, not {overrides['corrected']!r}")
        if result.noise != "deeplensesim":
            twice = ", ".join(entry.name for entry in PRESETS.values() if entry.noise == "deeplensesim")
            raise D4LensError(f"corrected is a switch of {twice}; the noise of {name} has nothing to correct")
        result = replace(result, corrected=overrides["corrected"])
    for key in parameters.keys() & overrides.keys():
        for other in _REPLACES.get(key, ()):
            priors.pop(other, None)
        priors[key] = _prior(key, overrides[key], priors.get(key))
    for pair in (("source_x", "source_y"), ("source_offset", "source_azimuth")):
        if (pair[0] in priors) != (pair[1] in priors):
            raise D4LensError(f"set {pair[0]} and {pair[1]} together")
    for key, prior in priors.items():
        for value in (prior.low, prior.high):
            parameters[key].check(key, value)
    if "z_lens" in priors and priors["z_lens"].high >= priors["z_source"].low:
        low, high = priors["z_source"].low, priors["z_lens"].high
        raise PhysicsError(f"z_source must lie beyond z_lens: z_source from {low:g}, z_lens up to {high:g}")
    # In the table's order, whatever the order of the overrides.
    return replace(result, priors={key: priors[key] for key in parameters if key in priors})


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise D4LensError(f"{name} must be one number, not {value!r}")
    return float(value)


def _prior(name: str, value: Any, old: Distribution | None) -> Distribution:
    """Return the prior an override asks for, with the unit of the prior before it."""
    unit = old.unit if old else ""
    if isinstance(value, Mapping):
        kind = value.get("kind")
        names = {"kind", "low", "high"} | ({"slope"} if kind == "power-law" else set())
        if kind not in ("uniform", "log-uniform", "power-law") or set(value) != names:
            raise D4LensError(
                f"{name}: a prior is a number, [low, high], or kind (uniform, log-uniform, power-law), low, high"
                f" and, for a power law, slope; got {dict(value)!r}"
            )
        low, high = _number(name, value["low"]), _number(name, value["high"])
        if kind != "uniform" and not low > 0:
            raise PhysicsError(f"{name}: a {kind} prior needs low > 0, not {low:g}")
        result = Distribution(kind, low, high, unit, "override", _number(name, value.get("slope", 0.0)))
    elif isinstance(value, list | tuple):
        if len(value) != 2:
            raise D4LensError(f"{name}: a uniform prior is a pair [low, high], not {value!r}")
        result = uniform(_number(name, value[0]), _number(name, value[1]), unit, "override")
    else:
        result = fixed(_number(name, value), unit, "override")
    if result.low > result.high:
        raise PhysicsError(f"{name}: low {result.low:g} lies above high {result.high:g}")
    return result
