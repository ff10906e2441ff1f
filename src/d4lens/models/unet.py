"""A small U-Net (Ronneberger et al. 2015) on fields, equivariant or plain, exact under D4 at every image size."""

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from d4lens.errors import D4LensError
from d4lens.models.fields import ORDER, downsample, summary


class Layers(Protocol):
    """The things a network is built of, each counted in fields. What a field is, the class that overrides these decides.

    Attributes
    ----------
    regular : bool
        Whether a field's channels stand for the eight elements of D4.
    """

    regular: bool

    def channels(self, fields: int) -> int:
        """Count the channels of so many fields.

        Parameters
        ----------
        fields : int
            Number of fields.

        Returns
        -------
        int
            Number of channels.
        """
        ...

    def lift(self, scalars: int, fields: int, kernel_size: int, padding: int) -> nn.Module:
        """Make a convolution from scalars to fields.

        Parameters
        ----------
        scalars : int
            Scalar maps in.
        fields : int
            Fields out.
        kernel_size : int
            Side of the kernel in pixels.
        padding : int
            Zeros on each side, in pixels.

        Returns
        -------
        nn.Module
            The layer.
        """
        ...

    def conv(self, fields_in: int, fields_out: int) -> nn.Module:
        """Make a convolution of 3 x 3 pixels between fields that keeps the size.

        Parameters
        ----------
        fields_in, fields_out : int
            Fields in and out.

        Returns
        -------
        nn.Module
            The layer.
        """
        ...

    def project(self, fields: int, scalars: int, kernel_size: int, padding: int) -> nn.Module:
        """Make a convolution from fields to scalars.

        Parameters
        ----------
        fields : int
            Fields in.
        scalars : int
            Scalar maps out.
        kernel_size : int
            Side of the kernel in pixels.
        padding : int
            Zeros on each side, in pixels.

        Returns
        -------
        nn.Module
            The layer.
        """
        ...

    def norm(self, fields: int) -> nn.Module:
        """Make a batch normalisation.

        Parameters
        ----------
        fields : int
            Number of fields.

        Returns
        -------
        nn.Module
            The layer.
        """
        ...

    def summary(self, x: Tensor) -> Tensor:
        """Summarise fields in vectors.

        Parameters
        ----------
        x : Tensor
            (B, C, n, n).

        Returns
        -------
        Tensor
            (B, summary_width).
        """
        ...

    def summary_width(self, fields: int) -> int:
        """Return the length of the summary of so many fields.

        Parameters
        ----------
        fields : int
            Number of fields.

        Returns
        -------
        int
            The length.
        """
        ...


class PlainLayers(Layers):
    """Ordinary convolutions in place of the equivariant ones.

    Parameters
    ----------
    per_field : float
        Channels where the equivariant network has a field of eight.
    """

    regular = False

    def __init__(self, per_field: float = 8.0) -> None:
        self.per_field = per_field

    @override
    def channels(self, fields: int) -> int:
        return max(1, round(fields * self.per_field))

    @override
    def lift(self, scalars: int, fields: int, kernel_size: int, padding: int) -> nn.Module:
        return nn.Conv2d(scalars, self.channels(fields), kernel_size, padding=padding, bias=False)

    @override
    def conv(self, fields_in: int, fields_out: int) -> nn.Module:
        widths = self.channels(fields_in), self.channels(fields_out)
        return nn.Conv2d(*widths, 3, padding=1, bias=False)

    @override
    def project(self, fields: int, scalars: int, kernel_size: int, padding: int) -> nn.Module:
        return nn.Conv2d(self.channels(fields), scalars, kernel_size, padding=padding)

    @override
    def norm(self, fields: int) -> nn.Module:
        return nn.BatchNorm2d(self.channels(fields))

    @override
    def summary(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean((-2, -1)), x.amax((-2, -1))], 1)

    @override
    def summary_width(self, fields: int) -> int:
        return 2 * self.channels(fields)


class ExportedLayers(PlainLayers):
    """The plain layers that `fields.without_escnn` leaves of the equivariant ones: to load and to predict, not to train.

    No element of D4 changes the summary.
    """

    regular = True

    def __init__(self) -> None:
        super().__init__(ORDER)

    @override
    def summary(self, x: Tensor) -> Tensor:
        return summary(x)

    @override
    def summary_width(self, fields: int) -> int:
        return 2 * fields


def field_layers(kind: str) -> Layers:
    """Make the layers of a network of regular fields.

    Parameters
    ----------
    kind : str
        "equivariant", which trains and needs escnn, or "exported", which only predicts.

    Returns
    -------
    Layers
        The layers.

    Raises
    ------
    D4LensError
        If escnn is needed and not installed.
    """
    if kind == "exported":
        return ExportedLayers()
    try:
        from d4lens.models.equivariant import EquivariantLayers  # not at the top: predicting does not need escnn
    except ImportError as error:
        raise D4LensError(
            f"an equivariant network needs escnn ({error}); install d4lens as its README says, or take exported weights"
        ) from None
    return EquivariantLayers()


def working_size(n_pixels: int, levels: int) -> int:
    """Return the least size at or above `n_pixels` that the U-Net's halvings keep whole: 75 -> 76, 150 -> 152 for three levels.

    Parameters
    ----------
    n_pixels : int
        Pixels a side of the image.
    levels : int
        Levels of the U-Net; it halves once less.

    Returns
    -------
    int
        Pixels a side.
    """
    step: int = 2 ** (levels - 1)
    return -(-n_pixels // step) * step


class Lift(nn.Module):
    """Scalar maps (B, C, n, n) to fields at the working size, the image's centre staying the array's centre.

    Zeros are added on all four sides alike. From an odd to an even size there is no such padding, and one row and one
    column more would move the centre by half a pixel and break D4: there a 4 x 4 kernel with padding 2 adds the one.

    Parameters
    ----------
    layers : Layers
        The kind of layers.
    n_pixels : int
        Pixels a side of the image.
    scalars : int
        Scalar maps C.
    fields : int
        Fields out.
    levels : int
        Levels of the U-Net, which set the working size.
    """

    def __init__(self, layers: Layers, n_pixels: int, scalars: int, fields: int, levels: int) -> None:
        super().__init__()
        self.n_pixels, self.size = n_pixels, working_size(n_pixels, levels)
        odd = self.odd = n_pixels % 2
        self.margin = (self.size - odd - n_pixels) // 2
        self.conv = layers.lift(scalars, fields, kernel_size=4 if odd else 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """Lift maps to fields.

        Parameters
        ----------
        x : Tensor
            (B, scalars, n, n).

        Returns
        -------
        Tensor
            (B, C, size, size).

        Raises
        ------
        D4LensError
            If n is not that of the class.
        """
        if x.shape[-2:] != (self.n_pixels, self.n_pixels):
            raise D4LensError(
                f"images of {x.shape[-2]} x {x.shape[-1]} pixels were given to a network built for {self.n_pixels} x "
                f"{self.n_pixels}; build it with the observation of these images"
            )
        x = F.pad(x, [self.margin] * 4) if self.margin else x
        fields: Tensor = self.conv(x.contiguous(memory_format=torch.channels_last))
        return fields

    def restore(self, x: Tensor) -> Tensor:
        """Bring maps of the working size back to the image's pixels: means of four where the size was odd, then a crop.

        Parameters
        ----------
        x : Tensor
            (B, C, m, m), where m is the working size.

        Returns
        -------
        Tensor
            (B, C, n, n).
        """
        if self.odd:  # as a convolution: a quarter of the time of avg_pool2d at stride 1
            channels = x.shape[1]
            x = F.conv2d(x, x.new_full((channels, 1, 2, 2), 0.25), groups=channels)
        return self.crop(x)

    def crop(self, x: Tensor) -> Tensor:
        """Cut the margin off maps of the working size, or of one less where the image's size is odd.

        Parameters
        ----------
        x : Tensor
            (B, C, m, m), where m is the working size or one less.

        Returns
        -------
        Tensor
            (B, C, n, n).
        """
        excess = x.shape[-1] - self.n_pixels - self.margin
        # Padding by less than nothing: the gradient of a slice would come back channels first.
        return F.pad(x, [-self.margin, -excess] * 2) if self.margin or excess else x


class UNet(nn.Module):
    """U-Net from scalar maps to scalar maps.

    Skips are added, not concatenated, and no block stands at the finest level but the lift: most of the time is spent
    there.

    Parameters
    ----------
    layers : Layers
        What it is built of.
    n_pixels : int
        Pixels a side of the image.
    scalars_in, scalars_out : int
        Number of maps in and out.
    fields : sequence of int
        Number of fields of each level, finest first.

    Raises
    ------
    D4LensError
        For fewer than two levels, or a level without fields.
    """

    def __init__(
        self, layers: Layers, n_pixels: int, scalars_in: int, scalars_out: int, fields: Sequence[int] = (2, 4, 8)
    ) -> None:
        super().__init__()
        self.layers = layers
        fields = tuple(fields)
        if len(fields) < 2 or min(fields) < 1:
            raise D4LensError(f"a U-Net needs at least two levels of at least one field, not fields={fields}")
        self.lift = Lift(layers, n_pixels, scalars_in, fields[0], len(fields))
        self.norm = layers.norm(fields[0])
        self.down = nn.ModuleList(_Block(layers, fine, coarse) for fine, coarse in itertools.pairwise(fields))
        self.floor = _Block(layers, fields[-1], fields[-1])
        self.up = nn.ModuleList(_Block(layers, coarse, fine) for fine, coarse in itertools.pairwise(fields))
        # The way back from an even size to an odd one: again an even kernel, one pixel short of its padding.
        kernel_size = 4 if self.lift.odd else 3
        self.project = layers.project(fields[0], scalars_out, kernel_size, padding=1)
        # The first maps are close to zero: an untrained network draws no mass.
        with torch.no_grad():
            for parameter in self.project.parameters():
                parameter.mul_(0.1)
        self.channels = layers.channels(fields[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw maps.

        Parameters
        ----------
        x : Tensor
            (B, scalars_in, n, n).

        Returns
        -------
        Tensor
            Scalar maps (B, scalars_out, n, n).
        Tensor
            Features at the image's pixels, (B, channels, n, n).
        Tensor
            Fields of the coarsest level.
        """
        x = F.relu_(self.norm(self.lift(x)))
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(downsample(x))
        x = floor = self.floor(x)
        for block, skip in zip(reversed(self.up), reversed(skips)):
            x = F.interpolate(block(x), scale_factor=2, mode="nearest") + skip
        return self.lift.crop(self.project(x)), self.lift.restore(x), floor


class InvariantBranch(nn.Module):
    """Halve and convolve fields once for each further level, and summarise them in one vector an image.

    On equivariant layers the vector is invariant under D4.

    Parameters
    ----------
    layers : Layers
        What it is built of.
    fields : sequence of int
        Number of fields of what comes in, then of each further level.

    Attributes
    ----------
    width : int
        Length of the vector.
    """

    def __init__(self, layers: Layers, fields: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(layers, fine, coarse) for fine, coarse in itertools.pairwise(fields))
        self.summary, self.width = layers.summary, layers.summary_width(fields[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map fields to vectors that no element of D4 changes, where the layers are equivariant.

        Parameters
        ----------
        x : Tensor
            (B, C, n, n).

        Returns
        -------
        Tensor
            (B, width).
        """
        for block in self.blocks:
            x = block(downsample(x))
        return self.summary(x)


class _Block(nn.Module):
    def __init__(self, layers: Layers, fields_in: int, fields_out: int) -> None:
        super().__init__()
        self.conv, self.norm = layers.conv(fields_in, fields_out), layers.norm(fields_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(self.conv(x)))


def plain_of_equal_parameters(
    equivariant: nn.Module, n_pixels: int, scalars_in: int, scalars_out: int, fields: Sequence[int]
) -> UNet:
    """Build the plain U-Net whose number of parameters is nearest to that of `equivariant`.

    Parameters
    ----------
    equivariant : nn.Module
        The network to match.
    n_pixels : int
        Pixels a side of the image.
    scalars_in, scalars_out : int
        Scalar maps in and out.
    fields : sequence of int
        Fields of each level, as `UNet` takes them.

    Returns
    -------
    UNet
        With `PlainLayers` of the best of 64 widths.
    """
    target = sum(p.numel() for p in equivariant.parameters())

    def distance(per_field: float) -> int:
        with torch.device("meta"):
            net = UNet(PlainLayers(per_field), n_pixels, scalars_in, scalars_out, fields)
        return abs(sum(p.numel() for p in net.parameters()) - target)

    best = min((eighths / 8 for eighths in range(1, 65)), key=distance)
    return UNet(PlainLayers(best), n_pixels, scalars_in, scalars_out, fields)
