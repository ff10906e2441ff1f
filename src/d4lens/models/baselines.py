"""The baselines: ResNet18 (He et al. 2016) and a small D4-equivariant CNN, on the image or on the residual as well."""

import itertools
from collections.abc import Sequence
from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from d4lens.classes import CLASSES
from d4lens.models.batch import LensBatch
from d4lens.models.channels import needs_of, stack
from d4lens.models.fields import downsample, summary, without_escnn
from d4lens.models.unet import Lift, field_layers
from d4lens.observation import Observation


class ResNet(nn.Module):
    """A timm ResNet (He et al. 2016) on named channels.

    Parameters
    ----------
    observation : Observation
        Pixels, PSF and sky of the images.
    channels : sequence of str
        What it sees, of `channels`.
    backbone : str
        Name of timm's.
    pretrained : bool
        Whether it starts from ImageNet weights, which timm downloads.

    Attributes
    ----------
    needs : tuple of str
        Entries of the batch that are read.
    """

    def __init__(
        self,
        observation: Observation,
        channels: Sequence[str] = ("stretch",),
        backbone: str = "resnet18",
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.sky = tuple(channels), observation.sky
        self.needs = needs_of(self.channels)
        self.net = timm.create_model(
            backbone, pretrained=pretrained, in_chans=len(self.channels), num_classes=len(CLASSES)
        )

    def forward(self, batch: LensBatch) -> dict[str, Tensor]:
        """Compute {"logits": (B, 3)} of a batch with the entries of `needs`.

        Parameters
        ----------
        batch : LensBatch
            B images with the entries of `needs`.

        Returns
        -------
        dict of str to Tensor
            `logits` (B, 3), in the order of CLASSES.
        """
        return {"logits": self.net(stack(self.channels, batch, self.sky)).to(batch.counts.dtype)}


class D4CNN(nn.Module):
    """A D4-equivariant CNN: lift, one block a level with the size halved between, invariant mean and maximum, a linear layer.

    The logits are invariant: the eight views of an image give the same ones.

    Parameters
    ----------
    observation : Observation
        Pixels, PSF and sky of the images.
    channels : sequence of str
        What it sees, of `channels`.
    fields : sequence of int
        Number of regular fields of each level, finest first.

    Attributes
    ----------
    needs : tuple of str
        Entries of the batch that are read.
    """

    def __init__(
        self,
        observation: Observation,
        channels: Sequence[str] = ("stretch",),
        fields: Sequence[int] = (2, 4, 8, 12, 16),
    ) -> None:
        super().__init__()
        self.channels, self.sky = tuple(channels), observation.sky
        self.needs = needs_of(self.channels)
        layers, fields = field_layers("equivariant"), tuple(fields)
        # Three whole halvings are enough: from there on `downsample` fits itself to odd sizes.
        self.lift = Lift(layers, observation.n_pixels, len(self.channels), fields[0], levels=3)
        self.convs = nn.ModuleList(layers.conv(a, b) for a, b in itertools.pairwise(fields))
        self.norms = nn.ModuleList(layers.norm(f) for f in fields)
        self.classify = nn.Linear(2 * fields[-1], len(CLASSES))

    def forward(self, batch: LensBatch) -> dict[str, Tensor]:
        """Compute {"logits": (B, 3)} of a batch with the entries of `needs`.

        Parameters
        ----------
        batch : LensBatch
            B images with the entries of `needs`.

        Returns
        -------
        dict of str to Tensor
            `logits` (B, 3), in the order of CLASSES.
        """
        x = F.relu(self.norms[0](self.lift(stack(self.channels, batch, self.sky))))
        for conv, norm in zip(self.convs, self.norms[1:]):
            x = F.relu(norm(conv(downsample(x))))
        pooled = summary(x).to(self.classify.weight.dtype)
        return {"logits": self.classify(pooled).to(batch.counts.dtype)}

    def export(self) -> nn.Module:
        """Copy it for prediction without escnn: the same outputs from plain torch layers, in eval mode.

        Returns
        -------
        nn.Module
            The copy.
        """
        return without_escnn(self)


NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "resnet18": (ResNet, {}),
    "resnet18_residual": (ResNet, {"channels": ("stretch", "residual")}),
    "d4cnn": (D4CNN, {}),
    "d4cnn_residual": (D4CNN, {"channels": ("residual",)}),
}
