import io
import math

import numpy as np
import pytest
import torch

from d4lens.data.truth import COLUMNS, Truth
from d4lens.macrofit import SmoothLensModel
from d4lens.observation import Observation
from d4lens.simulator import draw, preset, render

PLAIN = {"n_clumps": 0.0, "second_component": 0.0, "light_peak": 0.5}


def test_a_plain_image_is_the_fit_s_own_model():
    """SIE off the centre, shear, one Sérsic component, its own PSF and sky: macrofit computes the same up to brightness."""
    kind = preset("survey", PLAIN)
    truth = draw(kind, 3, range(4), "none")
    mean = render(truth, kind, noise=False)
    for row, image in zip(truth.images.to_dict("records"), mean, strict=True):
        e = (1 - row["lens_q"]) / (1 + row["lens_q"])
        values = {name: row[name] for name in ("theta_E", "gamma1", "gamma2", "source_x", "source_y", "e1", "e2")}
        values |= {"lens_e1": e * math.cos(2 * row["lens_phi"]), "lens_e2": e * math.sin(2 * row["lens_phi"])}
        values |= {"lens_x": row["lens_x"], "lens_y": row["lens_y"], "n": row["sersic_n"], "R_e": row["sersic_R_e"]}
        values |= {"amplitude": 1.0, "sky": row["image_sky"], "psf_sigma": row["image_psf_sigma"]}
        model = SmoothLensModel(
            Observation(150, 0.05, row["image_psf_sigma"], row["image_sky"]), values, ("theta_E",), dtype=torch.float64
        )
        peer = model.image(torch.tensor([[row["theta_E"]]]))[0] - row["image_sky"]
        signal = image - row["image_sky"]
        assert torch.allclose(signal / signal.max(), peer / peer.max(), atol=2e-4)
        assert float((signal**2 / image).sum()) == pytest.approx(row["snr"] ** 2, rel=1e-6)


def test_components_and_galaxy_come_on_top_of_the_plain_image():
    plain, bare = preset("survey", PLAIN), preset("survey", PLAIN | {"light_peak": 50.0})
    truth = draw(bare, 5, range(3), "none")
    row = truth.images.iloc[0]
    galaxy = render(truth, bare, noise=False) - render(draw(plain, 5, range(3), "none"), plain, noise=False)
    y, x = divmod(int(galaxy[0].argmax()), 150)
    assert ((x - 74.5) * 0.05, (y - 74.5) * 0.05) == pytest.approx((row["lens_x"], row["lens_y"]), abs=0.04)
    arcs = render(draw(plain, 5, range(3), "none"), plain, noise=False)[0] - row["image_sky"]
    assert float(galaxy[0].max() / arcs.max()) == pytest.approx(50.0, rel=1e-6)
    clumpy = preset("survey", PLAIN | {"n_clumps": 6.0, "snr": 100.0})
    with_clumps, without = (
        render(draw(kind, 5, range(3), "none"), kind, noise=False)
        for kind in (clumpy, preset("survey", PLAIN | {"snr": 100.0}))
    )
    assert ((with_clumps - without).abs().amax((1, 2)) > 0.02 * without.amax((1, 2))).all()


def test_images_span_what_the_preset_says_and_come_back_from_their_tables():
    kind = preset("survey")
    truth = draw(kind, 1, range(300))
    table = truth.images
    assert 0.25 < (table["light_peak"] == 0).mean() < 0.42
    assert 0.42 < table["second_component"].mean() < 0.58
    assert set(table["n_clumps"]) == set(range(9))
    assert table["snr"].between(10, 300).all()
    assert np.log(table["snr"]).std() > 0.8
    few = draw(kind, 1, range(6))
    files = io.StringIO(few.images.to_csv(index=False)), io.StringIO(few.subhalos.to_csv(index=False))
    assert torch.equal(render(Truth.from_csv(*files), kind), render(few, kind))
    assert list(draw(preset("deeplense"), 1, range(2)).images.columns) == list(COLUMNS)
