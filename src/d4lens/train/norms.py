"""Batch normalisation over the batches of all processes: their step equals that of one process on all images."""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from d4lens.models.fields import ORDER, FieldNorm


def synchronise(net: nn.Module) -> None:
    """Let every batch normalisation of `net` take its moments over all processes, whose batches must be equally large.

    torch's SyncBatchNorm does not run on a CPU and does not know fields. Parameters and names stay as they are.

    Parameters
    ----------
    net : nn.Module
        The network, changed in place.
    """
    for module in net.modules():
        synced = _SYNCED.get(type(module))
        if synced is not None:
            module.__class__ = synced


class _Mean(torch.autograd.Function):
    """The mean over the processes, through which gradients flow back to all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _mean(gradient)


def _mean(x: Tensor) -> Tensor:
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _moments(x: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """Mean and variance, (C,), of groups of `each` channels of x (B, C, n, n) over the batches of all processes."""
    values = _wide(x).unflatten(1, (-1, each))
    mean = _Mean.apply(values.mean((0, 2, 3, 4)))
    variance = _Mean.apply((values - mean.view(1, -1, 1, 1, 1)).square().mean((0, 2, 3, 4)))
    return mean, variance


def _normalise(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    each = x.shape[1] // len(weight)
    scale = weight * torch.rsqrt(variance + eps)
    scale, shift = (t.repeat_interleave(each).view(1, -1, 1, 1) for t in (scale, bias - mean * scale))
    return (_wide(x) * scale + shift).to(x.dtype)


class _SyncedFieldNorm(FieldNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean, variance = _moments(x, ORDER)
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_(variance.detach(), self.momentum)
        return _normalise(x, mean, variance, self.weight, self.bias, self.eps)


def _batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    assert norm.momentum is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    mean, variance = _moments(x, 1)
    n = x.numel() // x.shape[1] * dist.get_world_size()
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean.detach(), norm.momentum)
    norm.running_var.lerp_(variance.detach() * (n / max(n - 1, 1)), norm.momentum)
    return _normalise(x, mean, variance, norm.weight, norm.bias, norm.eps)


class _SyncedBatchNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input) if self.training else super().forward(input)


class _SyncedBatchNormAct(BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(_batch_norm(self, x))) if self.training else super().forward(x)
        return out


_SYNCED: dict[type[nn.Module], type[nn.Module]] = {
    FieldNorm: _SyncedFieldNorm,
    nn.BatchNorm2d: _SyncedBatchNorm,
    BatchNormAct2d: _SyncedBatchNormAct,
}
