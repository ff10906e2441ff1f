"""The networks: `build` one by name, `load` a trained one."""

import importlib
import inspect
import pkgutil
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.models import weights
from d4lens.observation import Observation

SHARED = (
    "averaging",
    "batch",
    "channels",
    "engine",
    "equivariant",
    "fields",
    "head",
    "integrated_gradients",
    "scores",
    "unet",
    "weights",
)
"""Modules of this package that define no network."""
MODULES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SHARED))
"""The others. `NETWORKS` of each gives its networks' names, classes and the options that differ from the class's own."""
_MAKERS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    name: maker
    for module in MODULES
    for name, maker in importlib.import_module(f"{__name__}.{module}").NETWORKS.items()
}
NAMES = tuple(_MAKERS)


def build(name: str, observation: Observation, **options: Any) -> nn.Module:
    """Build a fresh network; torch's random state draws its weights.

    Parameters
    ----------
    name : str
        One of NAMES.
    observation : Observation
        Pixels, PSF and sky of the images.
    **options
        Parameters of the class behind the name.

    Returns
    -------
    nn.Module
        Its `forward` takes a `LensBatch`, of which it needs the entries in its attribute `needs`. It returns a dictionary
        with "logits" (B, 3) in the order of CLASSES and the fields it computes on the way.

    Raises
    ------
    D4LensError
        For an unknown name or option, or an option out of its range.
    """
    if name not in _MAKERS:
        raise D4LensError(f"unknown network {name!r}; the networks are {', '.join(NAMES)}")
    maker, defaults = _MAKERS[name]
    known = [key for key in inspect.signature(maker).parameters if key != "observation"]
    for key in options:
        if key not in known:
            raise D4LensError(f"unknown option {key!r} of network {name}; its options are {', '.join(known)}")
    try:
        return maker(observation, **{**defaults, **options})
    except (TypeError, ValueError, OSError) as error:  # OSError: pretrained weights that cannot be fetched
        if isinstance(error, D4LensError):
            raise
        raise D4LensError(f"model {name} cannot be built with {options}: {error}") from error


def describe(name: str, observation: Observation, options: dict[str, Any], network: nn.Module) -> dict[str, Any]:
    """Describe what `load` needs to build the network again, as JSON.

    Parameters
    ----------
    name : str
        A name of NETWORKS.
    observation : Observation
        The grid, pixel scale, PSF and sky it was built for.
    options : dict
        Its options, as `build` takes them.
    network : nn.Module
        The network.

    Returns
    -------
    dict
        Name, options, observation, classes in order, and the number of parameters.
    """
    return {
        "name": name,
        "options": options,
        "observation": observation.to_dict(),
        "classes": list(CLASSES),
        "n_parameters": sum(p.numel() for p in network.parameters()),
    }


def state(network: nn.Module) -> dict[str, Tensor]:
    """Copy the state_dict of eval mode, since escnn's keys differ between the modes. The network keeps its mode.

    Parameters
    ----------
    network : nn.Module
        The network.

    Returns
    -------
    dict of str to Tensor
        Copies, detached, on the network's device.
    """
    training = network.training
    tensors = {name: value.detach().clone() for name, value in network.eval().state_dict().items()}
    network.train(training)
    return tensors


def load(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a trained network from one safetensors file.

    Parameters
    ----------
    path : str or Path
        A file that a training wrote.

    Returns
    -------
    nn.Module
        The network in eval mode.
    dict
        Its description, as `describe` makes it, with what the training added.

    Raises
    ------
    D4LensError
        For a file that is missing, truncated, no safetensors (a pickle is never read) or not of this project, and for
        weights that do not fit the network they name.
    """
    tensors, config = weights.read(path)
    missing = {"name", "options", "observation", "classes"} - set(config)
    if missing:
        raise D4LensError(f"{path} is no network of d4lens: its description has no {', '.join(sorted(missing))}")
    if config["classes"] != list(CLASSES):
        raise D4LensError(f"{path} tells the classes {config['classes']} apart, this version {list(CLASSES)}")
    options = {key: value for key, value in config["options"].items() if key != "pretrained"}
    make = partial(build, config["name"], Observation.from_dict(config["observation"]))
    network = make(**options).eval()
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise D4LensError(
            f"the weights in {path} do not fit the network {config['name']} they name: {reason}"
        ) from None
    return network, config
