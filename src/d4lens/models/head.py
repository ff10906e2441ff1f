"""EfficientNetV2 (Tan & Le 2021, arXiv:2104.00298) as the classifier on physical channels."""

import timm
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError

# V2's pattern (fused blocks first, squeeze-and-excitation last) at a width that keeps a map at full size cheap.
_NANO = (
    ["er_r1_k3_s2_e4_c16"],
    ["er_r2_k3_s2_e4_c24"],
    ["er_r1_k3_s2_e4_c48"],
    ["ir_r1_k3_s1_e4_c48_se0.25"],
)


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
        net: EfficientNet = EfficientNet(
            decode_arch_def(list(map(list, _NANO))),
            num_classes=len(CLASSES),
            num_features=128,
            in_chans=channels,
            stem_size=8,
        )
    else:
        if "efficientnetv2" not in variant or not timm.is_model(variant):
            raise D4LensError(f"unknown head {variant!r}; take nano or one of timm's, such as tf_efficientnetv2_b0")
        net = timm.create_model(variant, pretrained=pretrained, in_chans=channels, num_classes=len(CLASSES))  # type: ignore[assignment]
    net.conv_stem.stride = (stem_stride, stem_stride)
    return net
