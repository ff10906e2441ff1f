"""The trained networks a study looks at, and their untrained counterparts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d4lens import models
from d4lens.errors import D4LensError
from d4lens.models.averaging import exported
from d4lens.observation import Observation


@dataclass(frozen=True)
class TrainedArm:
    """One arm of the table: its trained networks, exported, one for each seed, and what builds it."""

    name: str
    networks: list[nn.Module]
    config: dict[str, Any]

    @property
    def observation(self) -> Observation:  # numpydoc ignore=RT01
        """The pixels, PSF and sky it was trained on."""
        return Observation.from_dict(self.config["observation"])

    def untrained(self, seed: int) -> nn.Module:
        """Build the same network before training, exported.

        Parameters
        ----------
        seed : int
            It draws the weights.

        Returns
        -------
        nn.Module
            The network.
        """
        return untrained(self.config["name"], self.observation, seed, **self.config["options"])


def untrained(name: str, observation: Observation, seed: int, **options: Any) -> nn.Module:
    """Build a fresh network, exported; torch's random state stays as it was.

    Parameters
    ----------
    name : str
        One of `models.NAMES`.
    observation : Observation
        Pixels, PSF and sky of the images.
    seed : int
        It draws the weights.
    **options
        Of the network.

    Returns
    -------
    nn.Module
        The network.
    """
    options = {key: value for key, value in options.items() if key != "pretrained"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return exported(models.build(name, observation, **options))


def load_arms(
    folder: str | Path, wanted: Sequence[str], present: Sequence[str], seeds: Sequence[int], every: bool = False
) -> list[TrainedArm]:
    """Load trained arms, all seeds of each.

    Parameters
    ----------
    folder : str or Path
        It holds <arm>-<seed>.safetensors.
    wanted : sequence of str
        Arms to load, those of them that are `present` in the profile.
    present : sequence of str
        The profile's arms.
    seeds : sequence of int
        Their seeds.
    every : bool
        Have an arm that is not present raise instead.

    Returns
    -------
    list of TrainedArm

    Raises
    ------
    D4LensError
        If none is present, one of `every` is not, or a file is unusable.
    """
    chosen = [name for name in wanted if name in present]
    if not chosen:
        raise D4LensError(f"none of {', '.join(wanted)} is trained in this profile; add one to its `profile.arms`")
    if every and (missing := [name for name in wanted if name not in present]):
        raise D4LensError(f"{missing[0]} is not among the profile's arms {', '.join(present)}; name another arm")
    arms = []
    for name in chosen:
        loaded = [models.load(Path(folder) / f"{name}-{seed}.safetensors") for seed in seeds]
        arms.append(TrainedArm(name, [exported(network) for network, _ in loaded], loaded[0][1]))
    return arms


def first_networks(arms: Sequence[TrainedArm]) -> dict[str, nn.Module]:
    """Take the network of each arm's first seed, on the GPU if there is one.

    Parameters
    ----------
    arms : sequence of TrainedArm
        The arms.

    Returns
    -------
    dict of str to nn.Module
        By arm.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {arm.name: arm.networks[0].to(device) for arm in arms}
