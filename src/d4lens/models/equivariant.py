"""Layers equivariant to D4, the eight turns and reflections of a square: the one module that knows escnn and its cures.

A feature map is a stack of *regular fields* (Weiler & Cesa 2019, arXiv:1911.08251): eight channels each, channel
8 f + e being field f at group element e, which a turn of the image turns in space and permutes among themselves.

escnn 1.0.11 needs three cures, all made here before a layer can be built:

1. With scikit-learn installed it takes `sklearn.utils.extmath.randomized_svd`, which refuses the `np.matrix` it is
   given, and which draws from the global random state: the kernel basis, hence a training from scratch, would differ
   between runs. Without that function it takes scipy's exact SVD.
2. It keeps numerical results of any earlier run, cured or not, as pickles inside site-packages, and cannot be imported
   where that is read-only. They are kept for the process instead (two seconds, once).
3. Its sampled kernels are D4-symmetric to float32 rounding only. Each orbit of weights gets its mean, so that
   equivariance is exact in any precision.

A convolution of kernel k, stride s and padding p commutes with the quarter turn only if (n + 2 p - k) mod s = 0, so
every size here is checked, and `downsample` picks the pooling that fits.
"""

import functools
import math
import warnings
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from joblib import Memory
from torch import Tensor, nn
from typing_extensions import override

with warnings.catch_warnings(), mock.patch("joblib.Memory", return_value=Memory(None)):
    warnings.filterwarnings("ignore", message="`py3nj` package not found")
    import escnn.group._clebsh_gordan as _clebsh_gordan
    import escnn.group._numerical as _numerical
    import escnn.group.irrep as _irrep
    from escnn import gspaces
    from escnn import nn as enn

from d4lens.lensing import d4
from d4lens.models.fields import ORDER, FieldNorm, summary
from d4lens.models.unet import Layers

_numerical.randomized_svd = None
for _module, _name in (
    (_clebsh_gordan, "_clebsh_gordan_tensor"),
    (_clebsh_gordan, "_find_tensor_decomposition"),
    (_irrep, "_restrict_irrep"),
):
    _cached = getattr(_module, _name)
    setattr(_module, _name, functools.cache(getattr(_cached, "func", _cached)))

SPACE = gspaces.flipRot2dOnR2(N=4)
_ELEMENTS = tuple(SPACE.fibergroup.elements)


def _type(scalars: int, fields: int) -> enn.FieldType:
    return enn.FieldType(SPACE, [SPACE.trivial_repr] * scalars + [SPACE.regular_repr] * fields)


class EquivariantConv(nn.Module):
    """escnn's `R2Conv` between scalars or regular fields, on plain tensors (B, C, n, n), zero padding, stride 1.

    Parameters
    ----------
    scalars_in, fields_in : int
        Give one of them: the number of scalars, or of regular fields, that come in.
    scalars_out, fields_out : int
        Give one of them: the number that goes out. Scalars alone have a bias.
    kernel_size : int
        Pixels a side of the kernel.
    padding : int, optional
        Zeros added on each side; by default as many as keep the size.
    """

    orbit: Tensor

    def __init__(
        self,
        *,
        scalars_in: int = 0,
        fields_in: int = 0,
        scalars_out: int = 0,
        fields_out: int = 0,
        kernel_size: int = 3,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.conv = enn.R2Conv(
            _type(scalars_in, fields_in),
            _type(scalars_out, fields_out),
            kernel_size,
            padding=kernel_size // 2 if padding is None else padding,
            # Scalars alone take a bias: a field's would be undone by the norm that follows every such convolution.
            bias=scalars_out > 0,
            # A layer of its own: escnn would share one basis among layers, and `.double()` of one network reach another.
            recompute=True,
            initialize=False,
        )
        (block,) = self.conv.basisexpansion.children()
        n_out, n_in = (1 if scalars else ORDER for scalars in (scalars_out, scalars_in))
        self.register_buffer("orbit", _orbits(n_out, n_in, self.conv.basisexpansion.points), persistent=False)
        block.sampled_basis.copy_(_symmetrised(block.sampled_basis, self.orbit))
        # He et al. 2015 on the expanded kernel: the variances of what reaches one output channel add up to 2.
        reach = block.sampled_basis.square().sum((0, 2, 3)).mean().item() * (scalars_in + fields_in)
        nn.init.normal_(self.conv.weights, std=math.sqrt(2 / reach))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve maps.

        Parameters
        ----------
        x : Tensor
            (B, channels in, n, n).

        Returns
        -------
        Tensor
            (B, channels out, m, m); m follows from n, the kernel and its padding.
        """
        conv = self.conv
        kernel, bias = conv.expand_parameters() if conv.training else (conv.filter, conv.expanded_bias)
        # escnn's own forward leaves the kernel channels first, and one such kernel turns all that follows.
        return F.conv2d(x, kernel.contiguous(memory_format=torch.channels_last), bias, padding=conv.padding)

    def train(self, mode: bool = True) -> "EquivariantConv":
        """Switch the mode; the kernel kept for evaluation is exactly equivariant.

        The entries of an orbit are sums of the same terms, which a matrix product need not round alike on every processor:
        each takes the value of one of them.

        Parameters
        ----------
        mode : bool
            True to train, False to evaluate.

        Returns
        -------
        EquivariantConv
            The layer itself.
        """
        expand = self.training and not mode
        super().train(mode)
        if expand:
            kernel, (n_out, n_in, n_points) = self.conv.filter, self.orbit.shape
            blocks = kernel.view(kernel.shape[0] // n_out, n_out, kernel.shape[1] // n_in, n_in, n_points).transpose(
                1, 2
            )
            tied = blocks.flatten(2)[..., self.orbit.flatten()].view(blocks.shape)
            self.conv.filter = tied.transpose(1, 2).reshape(kernel.shape)
        return self

    def plain(self) -> nn.Conv2d:
        """Copy the trained layer as a torch convolution.

        Returns
        -------
        nn.Conv2d
            The same kernel and bias, on the same device.
        """
        training = self.training
        self.eval()
        weight, bias = self.conv.filter.detach(), self.conv.expanded_bias
        plain = nn.Conv2d(
            weight.shape[1],
            weight.shape[0],
            self.conv.kernel_size,
            padding=self.conv.padding,
            bias=bias is not None,
            dtype=weight.dtype,
            device=weight.device,
        )
        with torch.no_grad():
            plain.weight.copy_(weight)
            if plain.bias is not None:
                plain.bias.copy_(bias)
        self.train(training)
        return plain


def _orbits(n_out: int, n_in: int, points: Any) -> Tensor:
    """Label a kernel's entries (n_out, n_in, p), equal where K(g x) = rho_out(g) K(x) rho_in(g)^-1 makes them equal.

    Each label is the index of one entry of its orbit in the flattened kernel.
    """
    place = torch.as_tensor(points, dtype=torch.float64)
    index = torch.arange(n_out * n_in * len(place)).view(n_out, n_in, len(place))
    orbit = index.clone()
    for element in _ELEMENTS:
        turned = place @ torch.as_tensor(SPACE.basespace_action(element), dtype=torch.float64).T
        to = torch.cdist(turned, place).argmin(1)
        image = index[_permutation(element, n_out)][:, _permutation(element, n_in)][:, :, to]
        orbit = torch.minimum(orbit, image)
    # An orbit's least member is the same for all its members, since the eight elements form a group.
    return orbit


def _symmetrised(basis: Tensor, orbit: Tensor) -> Tensor:
    """Kernels (b, out, in, p) made exactly equivariant: each entry the mean of its orbit."""
    flat, label = basis.reshape(len(basis), -1).double(), orbit.reshape(-1)
    size = torch.bincount(label, minlength=len(label)).double()
    total = torch.zeros_like(flat).index_add_(1, label, flat)
    exact = (total / size.clamp_min(1))[:, label].reshape(basis.shape)
    if (exact - basis).abs().max() > 1e-5:
        raise AssertionError("escnn's kernel basis is not D4-equivariant to float32 rounding")
    return exact.to(basis.dtype)


def _permutation(element: Any, size: int) -> Tensor:
    """Where each channel of a scalar (size 1) or of a regular field (size 8) goes under `element`."""
    if size == 1:
        return torch.zeros(1, dtype=torch.long)
    return torch.as_tensor(SPACE.regular_repr(element)).argmax(0)


@functools.cache
def _channel_order(g: int) -> tuple[int, ...]:
    """Channel order of a regular field after element `g` of `d4lens.lensing.d4`: new[e] = old[order[e]].

    escnn's element is found by its effect on an image, so that neither side's convention is written down twice.
    """
    image = torch.arange(9.0).view(1, 1, 3, 3)
    wanted = d4.transform(image, g)
    for element in _ELEMENTS:
        if torch.allclose(enn.GeometricTensor(image, _type(1, 0)).transform(element).tensor, wanted, atol=1e-3):
            return tuple(_permutation(element, ORDER).argsort().tolist())
    raise AssertionError(f"no element of escnn's D4 acts on an image as element {g}")


def transform_fields(x: Tensor, g: int) -> Tensor:
    """Act with element `g` on regular fields (B, 8 F, n, n): turn the map, permute the eight channels of each field.

    Parameters
    ----------
    x : Tensor
        (B, 8 F, n, n).
    g : int
        An element of D4, 0 to 7.

    Returns
    -------
    Tensor
        The fields after the turn, of the same shape.
    """
    order = torch.tensor(_channel_order(g), device=x.device)
    batch, channels, n, _ = x.shape
    return d4.transform(x.view(batch, channels // ORDER, ORDER, n, n)[:, :, order], g).reshape(x.shape)


class EquivariantLayers(Layers):
    """What an equivariant network is made of. A field's eight channels share the moments of the norm; the summary is invariant."""

    regular = True

    @override
    def channels(self, fields: int) -> int:
        return ORDER * fields

    @override
    def lift(self, scalars: int, fields: int, kernel_size: int, padding: int) -> nn.Module:
        return EquivariantConv(scalars_in=scalars, fields_out=fields, kernel_size=kernel_size, padding=padding)

    @override
    def conv(self, fields_in: int, fields_out: int) -> nn.Module:
        return EquivariantConv(fields_in=fields_in, fields_out=fields_out)

    @override
    def project(self, fields: int, scalars: int, kernel_size: int, padding: int) -> nn.Module:
        return EquivariantConv(fields_in=fields, scalars_out=scalars, kernel_size=kernel_size, padding=padding)

    @override
    def norm(self, fields: int) -> nn.Module:
        return FieldNorm(fields)

    @override
    def summary(self, x: Tensor) -> Tensor:
        return summary(x)

    @override
    def summary_width(self, fields: int) -> int:
        return 2 * fields
