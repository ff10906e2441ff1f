import pytest
import torch

from d4lens.detection import MatchedFilter, matched_filter, whitened
from d4lens.errors import D4LensError
from d4lens.macrofit import significance_maps


def test_the_map_is_the_one_that_networks_read(images, lens):
    _, counts, result = images
    networks = significance_maps(counts, result.parameters, lens)
    for i in range(len(counts)):
        image = matched_filter(counts[i], result.parameters[i], lens)
        found = image.significance(whitened(counts[i], result.parameters[i], lens)[None])[0]
        assert (found - networks[i]).abs().max() < 1e-3 * networks[i].abs().max()


@pytest.mark.parametrize("profile", ["point", "sis"])
def test_it_is_the_likelihood_ratio_written_out(profile, noise):
    n, step = 12, 0.1
    root, shift = 1 + torch.rand((n, n), generator=noise), torch.randn((2, n, n), generator=noise)
    columns = torch.randn((3, n, n), generator=noise)
    image = MatchedFilter(root, shift, columns, step, profile)
    residual, axis = torch.randn((n, n), generator=noise), (torch.arange(n) - (n - 1) / 2) * step
    row, column = 3, 8
    dy, dx = torch.meshgrid(axis - axis[row], axis - axis[column], indexing="ij")
    below = dx**2 + dy**2 + step**2
    below = below if profile == "point" else below.sqrt()
    template = (root * (shift[0] * dx + shift[1] * dy) / below).flatten().double()
    basis, _ = torch.linalg.qr((columns * root).flatten(1).double().T)
    template -= basis @ (basis.T @ template)
    strength = template @ residual.flatten().double() / template.square().sum()
    assert image.information[row, column] == pytest.approx(float(template.square().sum()), rel=1e-4)
    assert image.explained(residual)[row, column] / image.information[row, column] == pytest.approx(
        float(strength), rel=1e-3
    )


def test_noise_has_a_significance_of_standard_deviation_one(images, lens, noise):
    _, counts, result = images
    image = matched_filter(counts[4], result.parameters[4], lens)
    trials = image.significance(torch.randn((200, 75, 75), generator=noise))
    on_ring = trials[:, 37, 50]
    assert float(on_ring.std()) == pytest.approx(1, abs=4 / (2 * 200) ** 0.5)
    assert image.highest(torch.zeros((2, 75, 75))).tolist() == [0, 0]


def test_pixels_without_data_say_nothing(images, lens):
    _, counts, result = images
    hidden = counts[0].clone()
    hidden[:, 40:] = torch.nan
    residual = whitened(hidden, result.parameters[0], lens)
    assert (residual[:, 40:] == 0).all()
    less = matched_filter(hidden, result.parameters[0], lens).information
    assert (less < matched_filter(counts[0], result.parameters[0], lens).information + 1e-6).all()


def test_another_profile_is_refused(images, lens):
    _, counts, result = images
    with pytest.raises(D4LensError, match="point or sis"):
        matched_filter(counts[0], result.parameters[0], lens, "nfw")
