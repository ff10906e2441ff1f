import math

import numpy as np
import pytest
import referees
import torch
from scipy.ndimage import gaussian_filter

from d4lens import lensing
from d4lens.errors import PhysicsError
from d4lens.observation import bin_pixels
from d4lens.simulator import draw, preset, render, substructure_convergence
from d4lens.simulator.dataset import DataSet, write_archive
from d4lens.simulator.substructure import lens_convergence


@pytest.fixture(scope="module")
def truth(deeplense):
    return draw(deeplense, 3, range(9))


@pytest.mark.parametrize("binning", [1, 2])
def test_convergence_integrates_to_the_mass(deeplense, truth, binning):
    observation = deeplense.observation.binned(binning)
    kappa = substructure_convergence(truth, observation)
    assert kappa.dtype == torch.float32
    assert kappa.shape == (9, 150 // binning, 150 // binning)
    mass = kappa.double().sum((1, 2)) * observation.pixel_scale**2
    rods = truth.images["rod_theta_E"].fillna(0.0).to_numpy() ** 2
    points = [(p[0] ** 2).sum() for p in truth.subhalo_arrays()]
    # All of it lies 1.3 arcsec within the edge; none leaks.
    np.testing.assert_allclose(mass, math.pi * (rods + points), rtol=1e-5)
    assert (kappa[::3] == 0).all()


@pytest.mark.parametrize("binning", [1, 2])
def test_the_whole_lens_bends_light_by_its_convergence(deeplense, truth, binning):
    """Its excess over the substructure is the mass of a sphere: pi R theta_E within R, to the pixels at the rim."""
    observation = deeplense.observation.binned(binning)
    smooth = lens_convergence(truth, observation) - substructure_convergence(truth, observation)
    x, y = lensing.grid(observation.n_pixels, observation.pixel_scale, torch.float64)
    within = (torch.hypot(x, y) < 3) * observation.pixel_scale**2
    theta_E = truth.images["theta_E"].to_numpy()
    np.testing.assert_allclose((smooth * within).sum((1, 2)), math.pi * 3 * theta_E, rtol=0.01)
    assert (smooth > 0).all()


def test_convergence_is_the_masses_smoothed(deeplense, truth):
    """Against the masses put on a grid four times as fine and blurred there."""
    fine, n = 4, 150
    h = 0.05 / fine
    kappa = substructure_convergence(truth, deeplense.observation)
    for i in (1, 2):
        if i == 1:
            theta_E, x, y = truth.subhalo_arrays()[i]
        else:
            row = truth.images.iloc[i]
            along = row.rod_half_length * (2 * (np.arange(3000) + 0.5) / 3000 - 1)
            x, y = row.rod_x + along * math.cos(row.rod_phi), row.rod_y + along * math.sin(row.rod_phi)
            theta_E = np.full(3000, row.rod_theta_E / math.sqrt(3000))
        density = np.zeros((n * fine, n * fine))
        # Each mass shared by its four nearest cells, so that its centre of mass stays in place.
        j, k = x / h + (n * fine - 1) / 2, y / h + (n * fine - 1) / 2
        j0, k0 = np.floor(j).astype(int), np.floor(k).astype(int)
        for dj in (0, 1):
            for dk in (0, 1):
                share = np.abs(1 - dj - (j - j0)) * np.abs(1 - dk - (k - k0))
                np.add.at(density, (k0 + dk, j0 + dj), share * math.pi * theta_E**2 / h**2)
        blurred = gaussian_filter(density, 2 * fine, truncate=6)
        # Centres of the coarse pixels lie between the middle two of the fine ones.
        middle = blurred.reshape(n, fine, n, fine)[:, 1:3, :, 1:3].mean((1, 3))
        np.testing.assert_allclose(kappa[i], middle, atol=0.02 * middle.max())
        assert np.abs(kappa[i].numpy() - middle).mean() < 1e-3 * middle.max()


def test_smoothing_is_in_pixels_of_the_observation(deeplense, truth):
    fine = substructure_convergence(truth, deeplense.observation, smoothing_px=4.0)
    coarse = substructure_convergence(truth, deeplense.observation.binned(2), smoothing_px=2.0)
    # The same field; a coarse pixel's centre is the corner of four fine ones.
    mean = bin_pixels(fine, 2) / 4
    torch.testing.assert_close(mean, coarse, rtol=0, atol=0.02 * coarse.max().item())


def test_deflection_is_what_the_convergence_causes(deeplense, truth):
    """Far from the masses smoothing changes nothing: the grid solver on the map gives the analytic deflection."""
    kappa = substructure_convergence(truth, deeplense.observation).double()
    alpha = lensing.PoissonSolver(150, 0.05).double().deflection(kappa)
    exact = referees.substructure_deflection(truth, deeplense.observation)
    far = substructure_convergence(truth, deeplense.observation, 6.0) < 1e-4
    for solved, analytic in zip(alpha, exact):
        assert analytic.abs().max() > 0.05
        torch.testing.assert_close(solved[far], analytic[far], rtol=0, atol=2e-3)
    assert (exact[0][0] == 0).all()


def test_tables_read_back_give_the_same_maps_and_images(tmp_path, tiny):
    write_archive(tmp_path / "a.zip", DataSet(tiny, 4, 9, 3))
    back, drawn = referees.read_truth(tmp_path / "a.zip"), draw(tiny, 4, range(9))
    assert torch.equal(
        substructure_convergence(back, tiny.observation)[:9], substructure_convergence(drawn, tiny.observation)
    )
    assert torch.equal(render(back, tiny)[:9], render(drawn, tiny))


@pytest.mark.parametrize("smoothing", [0.0, -1.0, math.nan])
def test_refuses_no_smoothing(deeplense, truth, smoothing):
    with pytest.raises(PhysicsError, match=f"smoothing_px.*{smoothing}"):
        substructure_convergence(truth, deeplense.observation, smoothing)


def test_an_image_without_masses_has_no_maps(deeplense):
    none = draw(preset("deeplense", {"n_subhalos": 0}), 0, range(2), "sphere")
    assert (substructure_convergence(none, deeplense.observation) == 0).all()
    assert (referees.substructure_deflection(none, deeplense.observation)[0] == 0).all()
