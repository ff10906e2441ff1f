import hashlib
import inspect
import subprocess
import sys

import pytest
import sklearn
import torch
from torch import nn

from d4lens.lensing import d4
from d4lens.models import equivariant
from d4lens.models.equivariant import EquivariantConv, transform_fields
from d4lens.models.fields import FieldNorm, downsample, invariant

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def turn(x, g, channels):
    return transform_fields(x, g) if channels == "fields" else d4.transform(x, g)


LAYERS = {
    "lift, odd kernel": (lambda: EquivariantConv(scalars_in=2, fields_out=3, kernel_size=5), 2, "scalars", "fields"),
    "lift, even kernel": (
        lambda: EquivariantConv(scalars_in=2, fields_out=3, kernel_size=4, padding=2),
        2,
        "scalars",
        "fields",
    ),
    "conv": (lambda: EquivariantConv(fields_in=2, fields_out=3), 16, "fields", "fields"),
    "project": (lambda: EquivariantConv(fields_in=2, scalars_out=2), 16, "fields", "scalars"),
    "norm": (lambda: FieldNorm(2), 16, "fields", "fields"),
    "downsample": (lambda: downsample, 16, "fields", "fields"),
    "invariant": (lambda: invariant, 16, "fields", "scalars"),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", [11, 12])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_commutes_with_all_eight_elements(name, n, dtype):
    make, channels, before, after = LAYERS[name]
    layer = make()
    x = torch.randn(3, channels, n, n, dtype=dtype)
    for training in (True, False):
        if isinstance(layer, nn.Module):
            layer = layer.to(dtype).train(training)
        y = layer(x)
        for g in d4.ELEMENTS:
            error = (layer(turn(x, g, before)) - turn(y, g, after)).abs().max() / y.std()
            assert error < TOLERANCE[dtype], (g, training)


def test_an_ordinary_convolution_would_fail_that_test():
    layer = nn.Conv2d(16, 24, 3, padding=1, bias=False)
    x = torch.randn(1, 16, 11, 11)
    error = (layer(transform_fields(x, 1)) - transform_fields(layer(x), 1)).abs().max() / layer(x).std()
    assert error > 1


def test_fields_transform_as_a_group():
    x = torch.randn(1, 16, 5, 5)
    for g in d4.ELEMENTS:
        assert torch.equal(transform_fields(transform_fields(x, g), d4.inverse(g)), x)
        for h in d4.ELEMENTS:
            assert torch.equal(transform_fields(transform_fields(x, h), g), transform_fields(x, d4.compose(g, h)))


def test_the_kernel_reaches_unit_gain_on_noise():
    layer = EquivariantConv(fields_in=6, fields_out=4)
    y = layer(torch.randn(8, 48, 20, 20))[..., 2:-2, 2:-2]
    assert 1.0 < y.var() < 4.0  # He: twice the input's variance, which the ReLU halves


def test_kernels_kept_for_evaluation_are_equivariant_in_any_precision_they_are_cast_to():
    for layer, channels, before, after in ((make(), c, b, a) for make, c, b, a in LAYERS.values()):
        if not isinstance(layer, EquivariantConv):
            continue
        with torch.no_grad():
            layer.conv.weights.normal_()
        layer.eval().double()  # the kernel was expanded in float32
        x = torch.randn(2, channels, 11, 11, dtype=torch.float64)
        for g in d4.ELEMENTS:
            error = (layer(turn(x, g, before)) - turn(layer(x), g, after)).abs().max() / layer(x).std()
            assert error < TOLERANCE[torch.float64], g


def digest() -> str:
    torch.manual_seed(3)
    nets = [EquivariantConv(scalars_in=1, fields_out=2, kernel_size=5), EquivariantConv(fields_in=2, fields_out=2)]
    state = b"".join(t.detach().numpy().tobytes() for net in nets for t in net.eval().state_dict().values())
    return hashlib.sha256(state).hexdigest()


# Another process, in which escnn finds nothing cached and can write nothing: its folder would lie below a file.
ELSEWHERE = f"""
import sys, joblib
Memory = joblib.Memory
joblib.Memory = lambda location, *a, **k: Memory(location and sys.argv[1], *a, **k)
import hashlib, torch
from d4lens.models.equivariant import EquivariantConv
{inspect.getsource(digest)}
print(digest())
"""


def test_weights_depend_neither_on_escnns_cache_nor_on_the_process(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "file" / "cache")]
    elsewhere = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert elsewhere.stdout.strip() == digest()


def test_scikit_learn_beside_escnn_is_cured():
    assert sklearn.__version__
    assert equivariant._numerical.randomized_svd is None
    EquivariantConv(fields_in=1, fields_out=1, kernel_size=3)


def test_one_models_precision_does_not_reach_anothers():
    single, double = EquivariantConv(fields_in=1, fields_out=1), EquivariantConv(fields_in=1, fields_out=1).double()
    assert {t.dtype for t in single.state_dict().values()} == {torch.float32}
    assert {t.dtype for t in double.state_dict().values()} == {torch.float64}
