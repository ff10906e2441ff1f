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

import copy
import functools
import math
import warnings
from unittest import mock

import torch
import torch.nn.functional as F
from joblib import Memory
from torch import Tensor, nn

with warnings.catch_warnings(), mock.patch("joblib.Memory", return_value=Memory(None)):
    warnings.filterwarnings("ignore", message="`py3nj` package not found")
    import escnn.group._clebsh_gordan as _clebsh_gordan
    import escnn.group._numerical as _numerical
    import escnn.group.irrep as _irrep
    from escnn import gspaces
    from escnn import nn as enn

from d4lens.lensing import d4

_numerical.randomized_svd = None
for _module, _name in (
    (_clebsh_gordan, "_clebsh_gordan_tensor"),
    (_clebsh_gordan, "_find_tensor_decomposition"),
    (_irrep, "_restrict_irrep"),
):
    _cached = getattr(_module, _name)
    setattr(_module, _name, functools.cache(getattr(_cached, "func", _cached)))

ORDER = 8
SPACE = gspaces.flipRot2dOnR2(N=4)
_ELEMENTS = tuple(SPACE.fibergroup.elements)


def _type(scalars: int, fields: int) -> enn.FieldType:
    return enn.FieldType(SPACE, [SPACE.trivial_repr] * scalars + [SPACE.regular_repr] * fields)


class EquivariantConv(nn.Module):
    """escnn's `R2Conv` between scalars or regular fields, on plain tensors (B, C, n, n), zero padding, stride 1.

    Give either `scalars_in` or `fields_in`, and either `scalars_out` or `fields_out`.
    """

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
            # A layer of its own: escnn would share one basis among layers, and `.double()` of one model reach another.
            recompute=True,
            initialize=False,
        )
        (block,) = self.conv.basisexpansion.children()
        block.sampled_basis.copy_(_symmetrised(block.sampled_basis, self.conv.basisexpansion.points))
        # He et al. 2015 on the expanded kernel: the variances of what reaches one output channel add up to 2.
        reach = block.sampled_basis.square().sum((0, 2, 3)).mean().item() * (scalars_in + fields_in)
        nn.init.normal_(self.conv.weights, std=math.sqrt(2 / reach))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(enn.GeometricTensor(x, self.conv.in_type)).tensor

    def plain(self) -> nn.Conv2d:
        """The trained layer as a torch convolution."""
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


def _symmetrised(basis: Tensor, points) -> Tensor:
    """Kernels (b, out, in, p) made exactly equivariant: K(g x) = rho_out(g) K(x) rho_in(g)^-1 for all eight g."""
    n_out, n_in, n_points = basis.shape[1:]
    place = torch.as_tensor(points, dtype=torch.float64)
    index = torch.arange(n_out * n_in * n_points).view(n_out, n_in, n_points)
    orbit = index.clone()
    for element in _ELEMENTS:
        turned = place @ torch.as_tensor(SPACE.basespace_action(element), dtype=torch.float64).T
        to = torch.cdist(turned, place).argmin(1)
        image = index[_permutation(element, n_out)][:, _permutation(element, n_in)][:, :, to]
        orbit = torch.minimum(orbit, image)
    flat = basis.reshape(len(basis), -1).double()
    label = orbit.reshape(-1)
    # An orbit's least member is the same for all its members, since the eight elements form a group.
    size = torch.zeros(len(label), dtype=torch.float64).index_add_(
        0, label, torch.ones(len(label), dtype=torch.float64)
    )
    total = torch.zeros_like(flat).index_add_(1, label, flat)
    exact = (total / size.clamp_min(1))[:, label].reshape(basis.shape)
    if (exact - basis).abs().max() > 1e-5:
        raise AssertionError("escnn's kernel basis is not D4-equivariant to float32 rounding")
    return exact.to(basis.dtype)


def _permutation(element, size: int) -> Tensor:
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
    """Act with element `g` on regular fields (B, 8 F, n, n): turn the map, permute the eight channels of each field."""
    order = torch.tensor(_channel_order(g), device=x.device)
    batch, channels, n, _ = x.shape
    return d4.transform(x.view(batch, channels // ORDER, ORDER, n, n)[:, :, order], g).reshape(x.shape)


class _FieldNorm(torch.autograd.Function):
    """Batch normalisation with the moments shared by a field's eight channels; backward of Ioffe & Szegedy 2015.

    Written on the native per-channel kernels: four times as fast on a CPU as moments taken through a reshaped view.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        channels, fields = x.shape[1], len(weight)
        ones, zeros = weight.new_ones(channels), weight.new_zeros(channels)
        tiny = 1e-12
        _, mean, inverse = torch.native_batch_norm(x, ones, zeros, zeros.clone(), ones.clone(), True, 0.0, tiny)
        variance = inverse.to(weight.dtype) ** -2 - tiny
        mean = mean.to(weight.dtype)
        field_mean = mean.view(fields, -1).mean(1)
        spread = (mean.view(fields, -1) - field_mean[:, None]) ** 2
        field_variance = (variance.view(fields, -1) + spread).mean(1)
        ctx.save_for_backward(x, weight, field_mean, field_variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(field_mean, field_variance)
        return _normalise(x, field_mean, field_variance, weight, bias, eps), field_mean, field_variance

    @staticmethod
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance = ctx.saved_tensors
        fields, each = len(weight), x.shape[1] // len(weight)
        wide = [t.repeat_interleave(each) for t in (weight, mean, variance)]
        if x.is_contiguous(memory_format=torch.channels_last):
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        # With the moments held fixed the native kernel also gives sum(dy * x_hat) and sum(dy) of each channel.
        by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, *wide, None, None, False, ctx.eps, [True, True, True]
        )
        by_weight = by_weight.to(weight.dtype).view(fields, each).sum(1)
        by_bias = by_bias.to(weight.dtype).view(fields, each).sum(1)
        inverse = torch.rsqrt(variance + ctx.eps)
        count = x.numel() // fields
        slope = -weight * inverse**2 * by_weight / count
        shift = -weight * inverse * by_bias / count - slope * mean
        slope, shift = (t.repeat_interleave(each).view(1, -1, 1, 1).to(x.dtype) for t in (slope, shift))
        return by_x.addcmul_(x, slope).add_(shift), by_weight, by_bias, None


def _normalise(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    each = x.shape[1] // len(weight)
    mean, variance, weight, bias = (t.repeat_interleave(each) for t in (mean, variance, weight, bias))
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)


class FieldNorm(nn.Module):
    """Batch normalisation of regular fields (B, 8 F, n, n): one mean, variance, scale and shift for each field."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, fields: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(fields)), nn.Parameter(torch.zeros(fields))
        self.register_buffer("running_mean", torch.zeros(fields))
        self.register_buffer("running_var", torch.ones(fields))
        self.momentum, self.eps = momentum, eps

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return _normalise(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)
        y, mean, variance = _FieldNorm.apply(x, self.weight, self.bias, self.eps)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        return y

    def plain(self) -> nn.BatchNorm2d:
        """The trained layer as torch's batch normalisation."""
        plain = nn.BatchNorm2d(ORDER * len(self.weight), eps=self.eps, dtype=self.weight.dtype)
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(plain, name).copy_(getattr(self, name).repeat_interleave(ORDER))
        return plain.to(self.weight.device)


class EquivariantLayers:
    """What a network is made of when it is to be equivariant; `PlainLayers` of `unet` is its counterpart."""

    def channels(self, fields: int) -> int:
        return ORDER * fields

    def lift(self, scalars: int, fields: int, kernel_size: int, padding: int) -> nn.Module:
        return EquivariantConv(scalars_in=scalars, fields_out=fields, kernel_size=kernel_size, padding=padding)

    def conv(self, fields_in: int, fields_out: int, kernel_size: int = 3) -> nn.Module:
        return EquivariantConv(fields_in=fields_in, fields_out=fields_out, kernel_size=kernel_size)

    def project(self, fields: int, scalars: int, kernel_size: int, padding: int) -> nn.Module:
        return EquivariantConv(fields_in=fields, scalars_out=scalars, kernel_size=kernel_size, padding=padding)

    def norm(self, fields: int) -> nn.Module:
        return FieldNorm(fields)

    def summary(self, x: Tensor) -> Tensor:
        return summary(x)

    def summary_width(self, fields: int) -> int:
        return 2 * fields


def summary(x: Tensor) -> Tensor:
    """Mean and maximum of each regular field over the group and the plane, which no element changes: -> (B, 2 F).

    Faint masses light a few pixels only: the mean alone would dilute them.
    """
    mean = x.mean((-2, -1)).unflatten(1, (-1, ORDER)).mean(2)
    return torch.cat([mean, invariant(x).amax((-2, -1))], 1)


def invariant(x: Tensor) -> Tensor:
    """Largest value over the group of each regular field: (B, 8 F, n, n) -> F scalar maps (B, F, n, n)."""
    return x.unflatten(1, (-1, ORDER)).amax(2)


def downsample(x: Tensor) -> Tensor:
    """Mean pooling that commutes with a quarter turn: 2 x 2 on an even size, 3 x 3 at stride 2 on an odd one."""
    if x.shape[-1] % 2 == 0:
        return F.avg_pool2d(x, 2)
    return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)


def exported(model: nn.Module) -> nn.Module:
    """A copy in eval mode in which every escnn layer is a plain torch one: faster, and torch alone can save and run it.

    The model keeps its mode.
    """
    training = model.training
    with torch.no_grad():  # escnn keeps the filters of eval mode; expanded under autograd they could not be copied
        plain = copy.deepcopy(model.train().eval())
        for parent in list(plain.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, EquivariantConv | FieldNorm):
                    setattr(parent, name, child.plain().eval())
    model.train(training)
    return plain
