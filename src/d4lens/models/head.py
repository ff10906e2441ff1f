"""EfficientNetV2 (Tan & Le 2021, arXiv:2104.00298) as the classifier on physical channels."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError

# V2's pattern (fused blocks first, squeeze-and-excitation last) at the width that a thin map at full size can pay for:
# channels, stride and number of blocks of each stage.
_STEM, _FEATURES, _EXPANSION = 8, 128, 4
_FUSED = ((16, 2, 1), (24, 2, 2), (48, 2, 1))
_LAST = 48


class EfficientNet(nn.Module):
    """The classifier "nano" (0.1 M parameters), with timm's names, first weights and outputs.

    It stands here, and not in timm, because importing timm takes two seconds, which every `d4lens predict` would wait.

    Parameters
    ----------
    channels : int
        Number of maps it reads, (B, channels, N, N). It returns logits (B, 3).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = _conv(channels, _STEM, 3, stride=2), nn.BatchNorm2d(_STEM)
        stages, width = [], _STEM
        for out, stride, blocks in _FUSED:
            fused = [_Fused(width if i == 0 else out, out, stride if i == 0 else 1) for i in range(blocks)]
            stages.append(nn.Sequential(*fused))
            width = out
        self.blocks = nn.Sequential(*stages, nn.Sequential(_Separable(width, _LAST)))
        self.conv_head, self.bn2 = _conv(_LAST, _FEATURES, 1), nn.BatchNorm2d(_FEATURES)
        self.classifier = nn.Linear(_FEATURES, len(CLASSES))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.uniform_(module.weight, -(module.out_features**-0.5), module.out_features**-0.5)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, 3) of maps (B, channels, N, N)."""
        x = self.blocks(F.relu(self.bn1(self.conv_stem(x)), inplace=True))
        x = F.relu(self.bn2(self.conv_head(x)), inplace=True)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class _Fused(nn.Module):
    """A fused inverted bottleneck: a full convolution that expands, one of single pixels that narrows."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        wide = _EXPANSION * width
        self.conv_exp, self.bn1 = _conv(width, wide, 3, stride), nn.BatchNorm2d(wide)
        self.conv_pwl, self.bn2 = _conv(wide, out, 1), nn.BatchNorm2d(out)
        self.skips = width == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv_pwl(F.relu(self.bn1(self.conv_exp(x)), inplace=True)))
        return x + y if self.skips else y


class _Separable(nn.Module):
    """An inverted bottleneck with a depth-wise convolution and squeeze-and-excitation."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        wide = _EXPANSION * width
        self.conv_pw, self.bn1 = _conv(width, wide, 1), nn.BatchNorm2d(wide)
        self.conv_dw, self.bn2 = _conv(wide, wide, 3, groups=wide), nn.BatchNorm2d(wide)
        self.se = _SqueezeExcite(wide, width // 4)
        self.conv_pwl, self.bn3 = _conv(wide, out, 1), nn.BatchNorm2d(out)
        self.skips = width == out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv_pw(x)), inplace=True)
        y = self.se(F.relu(self.bn2(self.conv_dw(y)), inplace=True))
        out: Tensor = self.bn3(self.conv_pwl(y))
        return x + out if self.skips else out


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(width, narrow, 1), nn.Conv2d(narrow, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True)), inplace=True)
        gate: Tensor = self.conv_expand(squeezed)
        return x * gate.sigmoid()


def _conv(width: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False)


def efficientnet(variant: str, channels: int, *, stem_stride: int = 2, pretrained: bool = False) -> EfficientNet:
    """Build a classifier of maps (B, channels, N, N) with logits (B, 3).

    Parameters
    ----------
    variant : str
        "nano" (0.1 M parameters, of this project) or a name of timm's, such as "tf_efficientnetv2_b0".
    channels : int
        Number of maps.
    stem_stride : int
        1 keeps the native resolution in the stem.
    pretrained : bool
        Whether it starts from ImageNet weights, which timm downloads.

    Returns
    -------
    EfficientNet
        This module's, or timm's, which has the same names.

    Raises
    ------
    D4LensError
        For an unknown variant, or for weights of "nano", which has none.
    """
    if variant == "nano":
        if pretrained:
            raise D4LensError(
                "head 'nano' has no pretrained weights; set pretrained: false or take tf_efficientnetv2_b0"
            )
        net = EfficientNet(channels)
    else:
        import timm  # two seconds, which the shipped network does without

        if "efficientnetv2" not in variant or not timm.is_model(variant):
            raise D4LensError(f"unknown head {variant!r}; take nano or one of timm's, such as tf_efficientnetv2_b0")
        net = timm.create_model(variant, pretrained=pretrained, in_chans=channels, num_classes=len(CLASSES))  # type: ignore[assignment]
    net.conv_stem.stride = (stem_stride, stem_stride)
    return net
