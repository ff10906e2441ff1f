"""D4LensPINN: an equivariant U-Net draws the mass, the lens equation checks it, EfficientNetV2 names the dark matter."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.macrofit.columns import FIT_COLUMNS
from d4lens.models.batch import LensBatch
from d4lens.models.channels import channel, needs_of, stack
from d4lens.models.engine import LensEngine
from d4lens.models.fields import without_escnn
from d4lens.models.head import efficientnet
from d4lens.models.unet import InvariantBranch, PlainLayers, UNet, field_layers, plain_of_equal_parameters
from d4lens.observation import Observation

UNetKind = Literal["equivariant", "exported", "plain_width", "plain_parameters"]
OF_FIT = ("residual", "significance")


def make_unet(kind: UNetKind, n_pixels: int, scalars_in: int, scalars_out: int, fields: Sequence[int]) -> UNet:
    """Build the U-Net of one kind.

    Parameters
    ----------
    kind : str
        `equivariant`; `exported`, the same for prediction without escnn; `plain_width` or `plain_parameters`, of ordinary
        convolutions with as many channels, or about as many parameters, as the equivariant one.
    n_pixels : int
        Pixels a side of the image.
    scalars_in, scalars_out : int
        Number of maps in and out.
    fields : sequence of int
        Number of fields of each level, finest first.

    Returns
    -------
    UNet

    Raises
    ------
    D4LensError
        For an unknown kind or unusable `fields`, or where escnn is needed and missing.
    """
    if kind == "plain_width":
        return UNet(PlainLayers(), n_pixels, scalars_in, scalars_out, fields)
    if kind not in ("equivariant", "exported", "plain_parameters"):
        raise D4LensError(f"unknown unet {kind!r}; choose equivariant, exported, plain_width or plain_parameters")
    net = UNet(field_layers(kind), n_pixels, scalars_in, scalars_out, fields)
    if kind == "plain_parameters":
        return plain_of_equal_parameters(net, n_pixels, scalars_in, scalars_out, fields)
    return net


class D4LensPINNPublished(nn.Module):
    """The architecture as published: from the image alone to the whole lens's convergence.

    The channels stretch, log and gradient -> U-Net -> kappa >= 0 -> engine (zero-padded Poisson solve, deflection, splat to
    the source plane, no parameters) -> EfficientNetV2 on the published channels image, kappa, source and what the re-lensed
    source leaves of the image. Each is standardised: their spreads differ by a factor of 700.

    Its Poisson residual is a smoothness penalty, as psi comes from the solver itself, and one image cannot fix the
    mass sheet. Both are limits of the published idea and stay here; `D4LensPINN` has neither.

    Parameters
    ----------
    observation : Observation
        Pixels, PSF and sky of the images.
    unet_kind : str
        As in `make_unet`.
    fields : sequence of int
        Number of fields of each level of the U-Net, finest first.
    head : str
        The classifier, as in `head.efficientnet`.
    pretrained : bool
        Whether the head starts from ImageNet weights.
    head_channels : sequence of str
        Names among OF_IMAGE, kappa and OF_ENGINE. Where none needs the engine there is none, where all are of the image
        there is no U-Net either. alpha_r and alpha_t are the deflection's radial part and the size of its tangential part,
        which unlike alpha_x and alpha_y no element of D4 changes.
    frozen : bool
        Whether the U-Net keeps its first weights. Its normalisations go on following the images.
    source_half_width : float, optional
        Half the side of the source grid in arcsec, whose pixels have the size of the image's. Without it the source is as
        large as the image. The re-lensed image then fits whatever kappa is, so there is no consistency loss.
    inputs : sequence of str
        The U-Net's channels, of OF_IMAGE; by default the three of the published text.
    frozen_blocks : int
        Leading blocks of the head, the stem among them, that keep their first weights.
    sis : bool
        Whether the lens is a singular isothermal sphere (SIS) of the Einstein radius that the U-Net's invariants give, and
        what the U-Net draws comes on top, of either sign.

    Attributes
    ----------
    needs : tuple of str
        Entries of the batch that are read.
    losses : tuple of str
        Physical losses that have a meaning for the outputs.

    Raises
    ------
    D4LensError
        For `head_channels` beyond those allowed, or an unknown kind or head.
    """

    INPUTS = ("stretch", "log", "gradient")
    HEAD_CHANNELS = ("stretch", "kappa", "source", "unexplained")
    OF_IMAGE = (*INPUTS, "sobel")
    OF_ENGINE = ("psi", "alpha_x", "alpha_y", "alpha_r", "alpha_t", "source", "unexplained")
    needs = ("counts",)

    def __init__(
        self,
        observation: Observation,
        unet_kind: UNetKind = "equivariant",
        fields: Sequence[int] = (2, 4, 8),
        head: str = "nano",
        pretrained: bool = False,
        head_channels: Sequence[str] = HEAD_CHANNELS,
        frozen: bool = False,
        source_half_width: float | None = 1.5,
        sis: bool = False,
        inputs: Sequence[str] = INPUTS,
        frozen_blocks: int = 0,
    ) -> None:
        super().__init__()
        allowed = (*self.OF_IMAGE, "kappa", *self.OF_ENGINE)
        if not head_channels or not set(head_channels) <= set(allowed):
            raise D4LensError(f"head_channels must be names among {', '.join(allowed)}, not {list(head_channels)}")
        self.sky, self.inputs, self.head_channels = observation.sky, tuple(inputs), tuple(head_channels)
        self.unet, self.engine, self.invariants, self.read_theta_E = None, None, None, None
        self.losses: tuple[str, ...] = ()
        if set(head_channels) - {*self.OF_IMAGE}:
            self.unet = make_unet(unet_kind, observation.n_pixels, len(self.inputs), 1, fields)
            self.losses = ("total_variation", "sparsity", "centre", "poisson", "lens_convergence")
        if set(head_channels) & {*self.OF_ENGINE}:
            half_width, pixels = observation.half_width, observation.n_pixels
            if source_half_width is not None:
                half_width = min(source_half_width, half_width)
                pixels = max(8, round(2 * half_width / observation.pixel_scale))
                self.losses = (*self.losses, "consistency")
            self.engine = LensEngine(observation, half_width, pixels)
        self.standardise = nn.BatchNorm2d(len(self.head_channels))
        self.head = efficientnet(head, len(self.head_channels), pretrained=pretrained)
        quieten(self.head)
        if frozen_blocks:  # the stem is the first
            for part in (self.head.conv_stem, self.head.bn1, *tuple(self.head.blocks.children())[: frozen_blocks - 1]):
                part.requires_grad_(False)
        if sis:
            if self.unet is None or self.engine is None:
                raise D4LensError(
                    "sis needs the lens engine: give head_channels a name among " + ", ".join(self.OF_ENGINE)
                )
            self.losses = tuple(name for name in self.losses if name != "lens_convergence")  # kappa is not the lens's
            self.invariants = InvariantBranch(self.unet.layers, (fields[-1], 12, 16))
            self.read_theta_E = nn.Linear(self.invariants.width, 1)
        if frozen and self.unet is not None:
            self.unet.requires_grad_(False)

    def forward(self, batch: LensBatch) -> dict[str, Tensor]:
        """Compute the logits and the fields on the way.

        Parameters
        ----------
        batch : LensBatch
            Images with the entries of `needs`.

        Returns
        -------
        dict of Tensor
            `logits` (B, 3); with a U-Net `kappa` (B, N, N); with the engine `psi` (arcsec²), `alpha_x`, `alpha_y` (arcsec),
            `relensed` (counts) and `unexplained` (standard deviations), each (B, N, N), and `source` (counts) and
            `coverage`, each (B, n, n) on the source grid. With `sis` also `theta_E` (B,) in arcsec, while `kappa` and `psi`
            are those beyond the sphere's.
        """
        counts = batch.counts
        seen = {name: channel(name, batch, self.sky) for name in self.head_channels if name in self.OF_IMAGE}
        out: dict[str, Tensor] = {}
        if self.unet is not None:
            drawn, _, floor = self.unet(stack(self.inputs, batch, self.sky))
            drawn = drawn[:, 0].to(counts.dtype)
            if self.invariants is not None and self.read_theta_E is not None:
                vector = self.invariants(floor).to(self.read_theta_E.weight.dtype)
                # At zero the Einstein radius is one arcsec.
                out["theta_E"] = F.softplus(self.read_theta_E(vector)[:, 0].to(counts.dtype) + 0.5413)
                out["kappa"] = 0.1 * drawn
            else:
                # At zero the convergence is 0.13: a deflection of half an arcsec at the ring, from where both ways are open.
                out["kappa"] = F.softplus(drawn - 2.0)
            seen |= out
        if self.engine is not None:
            seen |= self._lens(self.engine, counts, out)
        channels = torch.stack([seen[name] for name in self.head_channels], 1)
        channels = self.standardise(channels).contiguous(memory_format=torch.channels_last)
        out["logits"] = self.head(channels).to(counts.dtype)
        return out

    def _lens(self, engine: LensEngine, counts: Tensor, out: dict[str, Tensor]) -> dict[str, Tensor]:
        """Lens by `out["kappa"]`, add what comes of it to `out`, and return it as the head sees it."""
        kappa, signal, theta_E, fit = out["kappa"], counts - self.sky, out.get("theta_E"), None
        if theta_E is not None:
            fit = F.pad(theta_E[:, None], (0, len(FIT_COLUMNS) - 1))
        out |= engine(kappa, signal, fit)
        out["psi"] = engine.poisson.potential(kappa)
        out["unexplained"] = (signal - out["relensed"]) / poisson_noise(counts)
        x, y = engine.x.to(counts.dtype), engine.y.to(counts.dtype)
        radius = torch.hypot(x, y)
        seen = {**out, "unexplained": out["unexplained"].clamp(-20, 20)}
        if theta_E is not None:
            seen["kappa"] = kappa + 0.5 * theta_E[:, None, None] / radius.clamp_min(engine.poisson.pixel_scale / 2)
            seen["psi"] = out["psi"] + theta_E[:, None, None] * radius
        seen["source"] = out["source"] / max(self.sky, 1.0) ** 0.5 / 10
        if seen["source"].shape[-1] != counts.shape[-1]:
            seen["source"] = F.interpolate(seen["source"][:, None], counts.shape[-2:], mode="bilinear")[:, 0]
        ax, ay = out["alpha_x"], out["alpha_y"]
        if "alpha_r" in self.head_channels:
            seen["alpha_r"] = (x * ax + y * ay) / radius.clamp_min(1e-6)
        if "alpha_t" in self.head_channels:  # a mirror turns its sign
            seen["alpha_t"] = ((x * ay - y * ax) / radius.clamp_min(1e-6)).abs()
        return seen

    def export(self) -> nn.Module:
        """Copy it for prediction without escnn: the same outputs from plain torch layers, in eval mode.

        Returns
        -------
        nn.Module
            The copy.
        """
        return without_escnn(self)


class D4LensPINN(nn.Module):
    """D4LensPINN on the residual of the smooth fit: kappa is what the smooth lens leaves unexplained.

    1. The channels `inputs` show the image and what the smooth fit leaves of it.
    2. The D4-equivariant U-Net turns them into the residual kappa and, with the engine, a psi of its own, so that
       lap(psi) = 2 kappa is a condition that training can enforce.
    3. The engine adds the smooth lens's deflection in closed form to the residual's and goes image -> source -> image. It
       leaves `unexplained` = (counts - sky - relensed) / sigma.
    4. EfficientNetV2 at native resolution classifies `head_channels` and the U-Net's features. Its logits are added to
       those of the invariants of the U-Net's coarsest level.

    Everything before the head is exactly D4-equivariant.

    Parameters
    ----------
    observation : Observation
        Pixels, PSF and sky of the images.
    inputs : sequence of str
        The U-Net's channels, of `channels`.
    head_channels : sequence of str, optional
        Names among HEAD_CHANNELS. The default is residual, significance, kappa and, with the engine, unexplained: no raw
        image, from which a network learns the simulator.
    engine : bool
        False leaves out the lens equation, with its channels and its losses.
    unet_kind : str
        As in `make_unet`.
    fields : sequence of int
        Number of fields of each level of the U-Net, finest first.
    invariant_fields : sequence of int
        Fields of the further halvings of the U-Net's coarsest level before its invariants are classified. An empty one
        leaves the decision to the head alone.
    head : str
        The classifier, as in `head.efficientnet`.
    pretrained : bool
        Whether the head starts from ImageNet weights.
    source_half_width : float
        Half the side of the source grid in arcsec. Its pixels have the size of the image's.

    Attributes
    ----------
    needs : tuple of str
        Entries of the batch that are read.
    losses : tuple of str
        Physical losses that have a meaning for the outputs.

    Raises
    ------
    D4LensError
        For `head_channels` beyond those allowed, or an unknown kind or head.
    """

    OF_IMAGE = ("stretch", "residual", "significance")
    OF_ENGINE = ("psi", "alpha_x", "alpha_y", "unexplained")
    HEAD_CHANNELS = (*OF_IMAGE, "kappa", *OF_ENGINE)
    losses = ("total_variation", "sparsity", "centre", "poisson", "consistency", "convergence")

    def __init__(
        self,
        observation: Observation,
        inputs: Sequence[str] = ("residual", "significance"),
        head_channels: Sequence[str] | None = None,
        engine: bool = True,
        unet_kind: UNetKind = "equivariant",
        fields: Sequence[int] = (2, 4, 8),
        invariant_fields: Sequence[int] = (12, 16),
        head: str = "nano",
        pretrained: bool = False,
        source_half_width: float = 1.5,
    ) -> None:
        super().__init__()
        if head_channels is None:
            head_channels = (*OF_FIT, "kappa", "unexplained") if engine else (*OF_FIT, "kappa")
        allowed = [name for name in self.HEAD_CHANNELS if engine or name not in self.OF_ENGINE]
        if not head_channels or not set(head_channels) <= set(allowed):
            raise D4LensError(f"head_channels must be names among {', '.join(allowed)}, not {list(head_channels)}")
        self.sky, self.scale = observation.sky, observation.pixel_scale
        self.inputs, self.head_channels = tuple(inputs), tuple(head_channels)
        self.needs = (*needs_of((*self.inputs, *self.head_channels)), *(("fit",) if engine else ()))
        self.unet = make_unet(unet_kind, observation.n_pixels, len(self.inputs), 2 if engine else 1, fields)
        half_width = min(source_half_width, observation.half_width)
        pixels = max(8, round(2 * half_width / observation.pixel_scale))
        self.engine = LensEngine(observation, half_width, pixels) if engine else None
        width = len(self.head_channels) + self.unet.channels
        self.head = efficientnet(head, width, stem_stride=1, pretrained=pretrained)
        self.invariants, self.classify_invariants = None, None
        if invariant_fields:
            self.invariants = InvariantBranch(self.unet.layers, (fields[-1], *invariant_fields))
            self.classify_invariants = nn.Linear(self.invariants.width, len(CLASSES))
            # The head's logits are added to those of the invariants. They begin small, or noise would hide the invariants.
            quieten(self.head)

    def forward(self, batch: LensBatch) -> dict[str, Tensor]:
        """Compute the logits and the fields on the way.

        Parameters
        ----------
        batch : LensBatch
            Images with the entries of `needs`.

        Returns
        -------
        dict of Tensor
            `logits` (B, 3) and `kappa` (B, N, N). With the engine also `psi` (arcsec²), `alpha_x`, `alpha_y` (arcsec),
            `relensed` (counts) and `unexplained` (standard deviations), each (B, N, N), and `source` (counts) and
            `coverage`, each (B, n, n).

        Raises
        ------
        D4LensError
            For a batch without one of `needs`, or of other pixels.
        """
        counts = batch.counts
        of_image = {*self.inputs, *(name for name in self.head_channels if name in self.OF_IMAGE)}
        seen = {name: channel(name, batch, self.sky) for name in of_image}
        drawn, features, floor = self.unet(torch.stack([seen[name] for name in self.inputs], 1))
        drawn = drawn.to(counts.dtype)
        # A tenth: the convergence of one detectable mass, smoothed to two pixels.
        out = {"kappa": 0.1 * drawn[:, 0]}
        if self.engine is not None:
            signal = counts - self.sky
            out |= self.engine(out["kappa"], signal, batch.need("fit"))
            # The network's own psi comes in units of pixels², in which its Laplacian is of order one.
            out["psi"] = self.scale**2 * drawn[:, 1]
            out["unexplained"] = (signal - out["relensed"]) / poisson_noise(counts)
        # Misfits reach hundreds of sigma where the source grid is too coarse for the brightest knot.
        named = {**out, **seen, "unexplained": out.get("unexplained", counts).clamp(-20, 20)}
        channels = torch.stack([named[name] for name in self.head_channels], 1)
        # In the features' precision and layout: the head's first convolution would convert them to it anyway.
        channels = channels.to(features.dtype, memory_format=torch.channels_last)
        logits = self.head(torch.cat([channels, features], 1))
        if self.invariants is not None and self.classify_invariants is not None:
            vector = self.invariants(floor).to(self.classify_invariants.weight.dtype)
            logits = logits + self.classify_invariants(vector)
        out["logits"] = logits.to(counts.dtype)
        return out

    def export(self) -> nn.Module:
        """Copy it for prediction without escnn: the same outputs from plain torch layers, in eval mode.

        Returns
        -------
        nn.Module
            The copy.
        """
        return without_escnn(self)


def quieten(head: EfficientNet) -> None:
    """Scale the classifier's first weights by a tenth.

    timm draws them for logits of a spread of 4 to 6, where the cross-entropy begins at 3 to 4 instead of chance's 1.1.

    Parameters
    ----------
    head : EfficientNet
        The freshly drawn head, changed in place.
    """
    with torch.no_grad():
        head.classifier.weight.mul_(0.1)


def poisson_noise(counts: Tensor) -> Tensor:
    """Estimate the Poisson standard deviation of counts of any shape from the counts themselves; at least one.

    Parameters
    ----------
    counts : Tensor
        Photons per pixel.

    Returns
    -------
    Tensor
        Photons per pixel, of the same shape.
    """
    return counts.clamp_min(1.0).sqrt()


NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "d4lenspinn_published": (D4LensPINNPublished, {}),
    "d4lenspinn": (D4LensPINN, {}),
}
