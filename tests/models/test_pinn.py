from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from d4lens.errors import D4LensError
from d4lens.lensing import d4
from d4lens.models.pinn import D4LensPINN, D4LensPINNPublished

SMALL = {"fields": (1, 2)}
SCALARS = ("kappa", "psi", "source", "unexplained", "relensed")
VECTOR = ("alpha_x", "alpha_y")


def published(observation, **options):
    return D4LensPINNPublished(observation, head="nano", **SMALL, **options)


MAKERS = {"residual": lambda o: D4LensPINN(o, **SMALL), "published": published}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 2e-3)])
@pytest.mark.parametrize("n", [75, 76])
@pytest.mark.parametrize("kind", MAKERS)
def test_everything_before_the_head_turns_with_the_sky(kind, n, dtype, bound, observation, batch):
    """From pixels to convergence, deflection, source and misfit. In float32 a ray's rounding, 1e-7 of the image, moves
    it over the edge of a source pixel now and then; that is what the wider bound is for."""
    model, lenses = MAKERS[kind](observation(n)).to(dtype), batch(n, 2, dtype)
    out = model(lenses)
    assert out["kappa"].std() > 1e-3
    for g in (1, 4, 7):
        turned = model(lenses.turned(g))
        for name in SCALARS:
            error = (turned[name] - d4.transform(out[name], g)).abs()
            assert error.max() < bound * out[name].abs().max(), (name, g)
        for a, b in zip(d4.transform_vector(out["alpha_x"], out["alpha_y"], g), (turned["alpha_x"], turned["alpha_y"])):
            assert (a - b).abs().max() < bound


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("n", [33, 34])
@pytest.mark.parametrize("kind", MAKERS)
def test_any_size_and_batch_trains(kind, n, size, observation, batch):
    model = MAKERS[kind](observation(n))
    out = model(batch(n, size))
    assert out["logits"].shape == (size, 3)
    assert out["kappa"].shape == out["psi"].shape == (size, n, n)
    out["logits"].square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_class_teaches_the_convergence_through_the_lens_equation(kind, observation, batch):
    """With all but the misfit (or the source) taken from the head, the logits' gradient still reaches kappa's weights."""
    if kind == "residual":
        model = D4LensPINN(observation(33), head_channels=("unexplained",), **SMALL)
    else:
        model = published(observation(33), head_channels=("source",))
    model(batch(33))["logits"].square().sum().backward()
    assert model.unet.project.conv.weights.grad.abs().max() > 0


def test_the_published_convergence_is_a_mass(observation, batch):
    out = published(observation(33))(batch(33))
    assert out["kappa"].min() > 0


def test_psi_is_the_network_s_own_and_the_published_one_the_solvers(observation, batch):
    for model, same in ((D4LensPINN(observation(34), **SMALL), False), (published(observation(34)), True)):
        out = model(batch(34))
        assert torch.allclose(out["psi"], model.engine.poisson.potential(out["kappa"])) == same


def test_what_is_unexplained_is_in_units_of_the_noise(observation, batch):
    lenses = batch(34)
    out = D4LensPINN(observation(34), **SMALL)(lenses)
    expected = (lenses.counts - 40 - out["relensed"]) / lenses.counts.clamp_min(1).sqrt()
    assert torch.allclose(out["unexplained"], expected)


def test_without_the_engine_there_is_no_lens_equation(observation, batch):
    model = D4LensPINN(observation(33), engine=False, **SMALL)
    assert model.head_channels == ("residual", "significance", "kappa")
    out = model(batch(33))
    assert set(out) == {"kappa", "logits"}
    with pytest.raises(
        D4LensError, match="head_channels must be names among stretch, residual, significance, kappa, not"
    ):
        D4LensPINN(observation(33), engine=False, head_channels=("unexplained",), **SMALL)


def test_the_head_sees_what_it_is_given_and_no_raw_image_unasked(observation, batch):
    lenses = batch(33)
    other = replace(lenses, counts=lenses.counts + 30.0)
    for channels, sees in ((None, False), (("stretch", "kappa"), True)):
        model = D4LensPINN(observation(33), head_channels=channels, engine=False, **SMALL).eval()
        assert torch.equal(model(lenses)["logits"], model(other)["logits"]) != sees


@pytest.mark.parametrize(
    ("channels", "needed"),
    [(("stretch",), set()), (("stretch", "kappa"), {"kappa"}), (("alpha_r",), {"kappa", "psi", "source"})],
)
def test_what_the_published_head_reads_decides_what_there_is(channels, needed, observation, batch):
    model = published(observation(33), head_channels=channels)
    assert (model.unet is None, model.engine is None) == ("kappa" not in needed, "psi" not in needed)
    out = model(batch(33))
    assert (
        needed | {"logits"} <= set(out) <= needed | {"logits"} | ({*SCALARS, *VECTOR, "coverage"} if needed else set())
    )
    assert bool(model.losses) == bool(needed)
    with pytest.raises(
        D4LensError, match="head_channels must be names among stretch, log, gradient, sobel, kappa, psi"
    ):
        published(observation(33), head_channels=("residual",))


def seen_by_head(model, lenses):
    """The head's input before it is standardised."""
    seen = []
    model.standardise.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(lenses)
    return dict(zip(model.head_channels, seen[0].unbind(1), strict=True))


@pytest.mark.parametrize("n", [33, 34])
def test_radial_and_tangential_deflection_are_scalars(n, observation, batch):
    channels = ("alpha_x", "alpha_y", "alpha_r", "alpha_t")
    model, lenses = published(observation(n), head_channels=channels).double(), batch(n, 2, torch.float64)
    seen = seen_by_head(model, lenses)
    length = torch.hypot(seen["alpha_x"], seen["alpha_y"])
    away = torch.hypot(model.engine.x, model.engine.y) > 0.01
    assert torch.allclose(torch.hypot(seen["alpha_r"], seen["alpha_t"])[:, away], length[:, away])
    assert seen["alpha_t"].abs().max() > 1e-3 * length.max()
    for g in (1, 4, 7):
        turned = seen_by_head(published_like(model), lenses.turned(g))
        for name in ("alpha_r", "alpha_t"):
            assert torch.allclose(turned[name], d4.transform(seen[name], g), atol=1e-10)


def published_like(model):
    copy = deepcopy(model)
    copy.standardise._forward_pre_hooks.clear()
    return copy


def test_a_small_source_leaves_a_misfit_that_is_a_loss(observation, batch):
    """Rays that end beside the source plane's grid have no light: the re-lensed image cannot fit whatever kappa is."""
    model, wide, lenses = published(observation(75)), published(observation(75), source_half_width=None), batch(75)
    out = model(lenses)
    assert out["source"].shape == (2, 30, 30)
    assert seen_by_head(model, lenses)["source"].shape == (2, 75, 75)
    assert "consistency" in model.losses
    assert "consistency" not in wide.losses
    assert out["unexplained"].std() > 1.2 * wide(lenses)["unexplained"].std()


def test_the_sphere_bends_light_by_the_radius_that_the_unet_reads(observation, batch):
    """With nothing drawn beside it, the deflection is an isothermal sphere's and its potential's gradient."""
    model, lenses = published(observation(33), sis=True, head_channels=("kappa", "psi")), batch(33)
    with torch.no_grad():
        for parameter in model.unet.project.parameters():
            parameter.zero_()
    out = model(lenses)
    assert out["theta_E"].shape == (2,)
    assert 0.2 < out["theta_E"].min() < out["theta_E"].max() < 3
    assert out["kappa"].abs().max() == 0
    length = torch.hypot(out["alpha_x"], out["alpha_y"])
    off_centre = torch.hypot(model.engine.x, model.engine.y) > 0.01
    expected = out["theta_E"][:, None].expand_as(length[:, off_centre])
    assert torch.allclose(length[:, off_centre], expected, atol=1e-4)
    seen = seen_by_head(model, lenses)
    slope = (seen["psi"][:, 16, 25:] - seen["psi"][:, 16, 24:-1]) / model.engine.poisson.pixel_scale
    assert torch.allclose(slope, out["theta_E"][:, None].expand_as(slope), rtol=1e-4)
    # kappa = theta_E / 2r
    assert torch.allclose(seen["kappa"][:, 16, 20] * 8 * model.engine.poisson.pixel_scale, out["theta_E"], rtol=1e-4)
    turned = model(lenses.turned(5))
    assert torch.allclose(turned["theta_E"], out["theta_E"], rtol=1e-4)
    turned["logits"].sum().backward()
    assert model.read_theta_E.weight.grad.abs().max() > 0
    with pytest.raises(D4LensError, match="sis needs the lens engine"):
        published(observation(33), sis=True, head_channels=("stretch", "kappa"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_channels": ("glow",)}, "head_channels must be names among"),
        ({"head_channels": ()}, "head_channels must be names among"),
        ({"unet_kind": "round"}, "unknown unet 'round'"),
        ({"head": "vgg"}, "unknown head 'vgg'"),
        ({"pretrained": True}, "has no pretrained weights"),
    ],
)
def test_options_out_of_range_are_refused(observation, options, message):
    with pytest.raises(D4LensError, match=message):
        D4LensPINN(observation(33), **SMALL, **options)


@pytest.mark.parametrize("name", ["stretch", "log", "gradient", "residual", "significance"])
def test_any_channel_of_the_image_may_be_the_unets(name, observation, batch):
    net = D4LensPINN(observation(33), inputs=[name, "residual"], **SMALL)
    assert net(batch(33))["logits"].isfinite().all()


def test_a_batch_without_its_fit_is_refused(observation, batch):
    """Without it the engine would lens by the residual alone."""
    with pytest.raises(D4LensError, match="run the macrofit stage first"):
        D4LensPINN(observation(33), **SMALL)(replace(batch(33), fit=None))


def test_an_unknown_channel_is_refused(observation, batch):
    with pytest.raises(D4LensError, match="unknown channel 'colour'; choose among stretch"):
        D4LensPINN(observation(33), inputs=["colour"], **SMALL)(batch(33))


@pytest.mark.parametrize("kind", ["plain_width", "plain_parameters"])
def test_the_plain_rivals_run(kind, observation, batch):
    assert D4LensPINN(observation(33), unet_kind=kind, **SMALL)(batch(33))["logits"].shape == (2, 3)


def test_export_computes_the_same_without_escnn(observation, batch):
    model, lenses = D4LensPINN(observation(33), **SMALL), batch(33, 4)
    model(lenses)
    plain = model.export()
    assert not any("escnn" in type(module).__module__ for module in plain.modules())
    for name, value in model.eval()(lenses).items():
        assert torch.allclose(plain(lenses)[name], value, atol=1e-3 * value.abs().max().item()), name
