"""Regular fields without escnn: their norm, pooling and invariants, and the plain layers a trained network becomes.

A field is eight channels, one for each element of D4; `equivariant` says how they turn. This module needs torch alone, and so
does a network exported for prediction.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ORDER = 8


class _FieldNorm(torch.autograd.Function):
    """Batch normalisation with the moments shared by a field's eight channels; backward of Ioffe & Szegedy 2015.

    Written on the native per-channel kernels: four times as fast on a CPU as moments taken through a reshaped view.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
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
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
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
        # The native kernel again, for slope * x + shift: a broadcast over few channels takes six times as long.
        zeros, ones = x.new_zeros(fields, dtype=weight.dtype), x.new_ones(fields, dtype=weight.dtype)
        return by_x.add_(_normalise(x, zeros, ones, slope, shift, 0.0)), by_weight, by_bias, None


def _normalise(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    each = x.shape[1] // len(weight)
    mean, variance, weight, bias = (t.repeat_interleave(each) for t in (mean, variance, weight, bias))
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)


class FieldNorm(nn.Module):
    """Batch normalisation of regular fields (B, 8 F, n, n): one mean, variance, scale and shift for each field.

    Parameters
    ----------
    fields : int
        Number of fields F.
    momentum : float
        Weight of a batch in the running moments.
    eps : float
        What is added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, fields: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(fields)), nn.Parameter(torch.zeros(fields))
        self.register_buffer("running_mean", torch.zeros(fields))
        self.register_buffer("running_var", torch.ones(fields))
        self.momentum, self.eps = momentum, eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise fields by their own moments in training, by the running ones else.

        Parameters
        ----------
        x : Tensor
            (B, 8 F, n, n).

        Returns
        -------
        Tensor
            The normalised fields, of the same shape.
        """
        if not self.training:
            return _normalise(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)
        y: Tensor
        y, mean, variance = _FieldNorm.apply(x, self.weight, self.bias, self.eps)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        return y

    def plain(self) -> nn.BatchNorm2d:
        """Copy the trained layer as torch's batch normalisation.

        Returns
        -------
        nn.BatchNorm2d
            Every field's moments, scale and shift, once for each of its eight channels.
        """
        plain = nn.BatchNorm2d(ORDER * len(self.weight), eps=self.eps, dtype=self.weight.dtype)
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(plain, name).copy_(getattr(self, name).repeat_interleave(ORDER))
        return plain.to(self.weight.device)


def summary(x: Tensor) -> Tensor:
    """Take the mean and the maximum of each regular field over group and plane, which no element of D4 changes.

    Faint masses light a few pixels only: the mean alone would dilute them.

    Parameters
    ----------
    x : Tensor
        (B, 8 F, n, n).

    Returns
    -------
    Tensor
        (B, 2 F).
    """
    mean = x.mean((-2, -1)).unflatten(1, (-1, ORDER)).mean(2)
    return torch.cat([mean, invariant(x).amax((-2, -1))], 1)


def invariant(x: Tensor) -> Tensor:
    """Take the largest value over the group of each regular field.

    Parameters
    ----------
    x : Tensor
        (B, 8 F, n, n).

    Returns
    -------
    Tensor
        Scalar maps (B, F, n, n).
    """
    largest: Tensor = x.unflatten(1, (-1, ORDER)).amax(2)
    return largest


def downsample(x: Tensor) -> Tensor:
    """Halve maps by means that commute with a quarter turn: 2 x 2 on an even size, 3 x 3 on an odd one.

    Parameters
    ----------
    x : Tensor
        (B, C, n, n).

    Returns
    -------
    Tensor
        (B, C, m, m), where m is n / 2, rounded up.
    """
    if x.shape[-1] % 2 == 0:
        return F.avg_pool2d(x, 2)
    return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)


def without_escnn(network: nn.Module) -> nn.Module:
    """Copy a network in eval mode, every escnn layer replaced by a plain torch one.

    The copy is faster, and torch alone can save and run it. The network keeps its mode.

    Parameters
    ----------
    network : nn.Module
        A network with layers of escnn.

    Returns
    -------
    nn.Module
        The copy.
    """
    training = network.training
    with torch.no_grad():  # escnn keeps the filters of eval mode; expanded under autograd they could not be copied
        plain = copy.deepcopy(network.train().eval())
        for parent in list(plain.modules()):
            for name, child in list(parent.named_children()):
                if callable(getattr(child, "plain", None)):
                    setattr(parent, name, child.plain().eval())  # type: ignore[operator]
    network.train(training)
    return plain
