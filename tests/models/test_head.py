import subprocess
import sys

import pytest
import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet

from d4lens.errors import D4LensError
from d4lens.models.head import efficientnet

ARCHITECTURE = [["er_r1_k3_s2_e4_c16"], ["er_r2_k3_s2_e4_c24"], ["er_r1_k3_s2_e4_c48"], ["ir_r1_k3_s1_e4_c48_se0.25"]]


def peer():
    """The same network of timm's parts."""
    return EfficientNet(decode_arch_def(ARCHITECTURE), num_classes=3, num_features=128, in_chans=5, stem_size=8)


@pytest.mark.parametrize("training", [True, False])
def test_nano_is_timms_to_the_bit(training):
    """Names, outputs, gradients and running moments, so that a file of weights fits either."""
    theirs, ours = peer().train(training), efficientnet("nano", 5).train(training)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 5, 33, 33, generator=torch.Generator().manual_seed(1))
    for net in (theirs, ours):
        net(x).square().sum().backward()
    assert torch.equal(ours(x), theirs(x))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def test_its_first_weights_are_drawn_as_timms():
    torch.manual_seed(0)
    for (name, one), other in zip(efficientnet("nano", 5).named_parameters(), peer().parameters(), strict=True):
        error = 5 / one.numel() ** 0.5  # of two standard deviations' ratio: five of its own
        drawn, expected = (float(p.detach().std(correction=0)) for p in (one, other))
        assert drawn == pytest.approx(expected, rel=error), name


def test_a_stem_of_stride_one_keeps_the_resolution():
    assert efficientnet("nano", 2, stem_stride=1).conv_stem(torch.zeros(1, 2, 33, 33)).shape[-1] == 33


def test_an_unknown_head_and_pretrained_nano_are_refused():
    with pytest.raises(D4LensError, match="unknown head 'resnet18'"):
        efficientnet("resnet18", 3)
    with pytest.raises(D4LensError, match="no pretrained weights"):
        efficientnet("nano", 3, pretrained=True)


def test_predicting_imports_neither_timm_nor_escnn():
    """Each takes seconds, which every command would wait."""
    code = "import sys, d4lens.inference.explain as e; e.load_classifier(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "d4lens.models.head" in loaded
    assert not {"timm", "torchvision", "escnn", "scipy.optimize", "torch._dynamo"} & set(loaded)
