import numpy as np
import pytest
import torch

from d4lens import simulator
from d4lens.macrofit import fit_faintest, fit_smooth_lens, preset_model


@pytest.fixture(scope="module")
def lenses() -> torch.Tensor:
    """Counts (6, 75, 75) of two lenses of each class at random orientation, binned 2 x 2."""
    preset = simulator.preset("deeplense", {"gamma_phi": [0.0, np.pi], "source_phi": [0.0, np.pi]})
    native = simulator.render(simulator.draw(preset, 8, range(6)), preset)
    return native.reshape(6, 75, 2, 75, 2).sum((2, 4)).float()


LIFT = np.full((75, 75), 4.0, np.float32)


@pytest.mark.parametrize("sky", ["known", "free"])
def test_the_fit_finds_the_faintest_pixel_s_count(lenses, sky):
    free = None if sky == "known" else ("theta_E", "gamma1", "gamma2", "source_x", "source_y", "e1", "e2", "sky")
    model = preset_model("deeplense", binning=2, free=free)
    wrong = torch.tensor([-3, -1, 0, 1, 2, -2])
    counts, result, raised = fit_faintest(lenses + 4.0 * wrong[:, None, None], model, [LIFT] * 6, [40.0] * 6)
    assert raised == (-wrong).tolist()
    torch.testing.assert_close(counts, lenses, rtol=0, atol=0)
    torch.testing.assert_close(result.chi2, fit_smooth_lens(lenses, model).chi2, rtol=1e-3, atol=0)


def test_known_counts_stay_and_pixels_without_data_say_nothing(lenses):
    model = preset_model("deeplense", binning=2)
    low = lenses - 4
    counts, _, raised = fit_faintest(low, model, [None] * 6, [40.0] * 6)
    assert raised == [0] * 6
    assert counts is low
    # A frame filled with the sky, as padding is, must neither be lifted nor count in the choice.
    inside = torch.zeros(75, 75, dtype=torch.bool)
    inside[8:-8, 8:-8] = True
    padded = torch.where(inside, low, 40.0)
    counts, _, raised = fit_faintest(padded, model, [LIFT * inside.numpy()] * 6, [40.0] * 6)
    assert raised == [1] * 6
    torch.testing.assert_close(counts, torch.where(inside, lenses, 40.0), rtol=0, atol=0)
