from dataclasses import replace

import torch

from d4lens.macrofit import fit_smooth_lens, preset_model
from d4lens.macrofit.world import foreign
from d4lens.observation import bin_pixels
from d4lens.simulator import draw, preset, render

LENS = preset_model("deeplense", binning=2)


def fitted(n, **overrides):
    kind = preset("deeplense", overrides)
    truth = draw(kind, 41, range(n))
    counts = bin_pixels(render(truth, kind), 2).float()
    return (
        counts,
        fit_smooth_lens(counts, LENS, max_starts=2),
        torch.tensor([name == "no" for name in truth.images["class"]]),
    )


def test_images_of_the_preset_are_no_foreigners_and_smooth_ones_of_other_worlds_are():
    counts, result, _ = fitted(24)
    assert foreign(counts, result, LENS).sum() <= 1
    assert foreign(counts, result, LENS, largest_chi2=0.0).all()
    for other in ({"lens_q": 0.75, "lens_phi": 0.5}, {"sersic_n": 1.0}, {"sersic_R_e": 0.35}):
        counts, result, smooth = fitted(6, **other)
        assert foreign(counts, result, LENS)[smooth].all(), other


def test_noise_that_neighbours_share_counts_as_that_of_photons():
    counts, result, _ = fitted(6)
    quieter, noise = replace(result, chi2=result.chi2 - 0.4), torch.full((6,), 0.6, dtype=torch.float64)
    largest = float(result.chi2.median())
    assert foreign(counts, result, LENS, largest).any()
    for limit in (None, largest):
        assert torch.equal(foreign(counts, quieter, LENS, limit, noise), foreign(counts, result, LENS, limit))
    assert not torch.equal(foreign(counts, quieter, LENS, largest), foreign(counts, result, LENS, largest))


def test_what_is_free_already_is_not_held_against_an_image():
    free = (*LENS.free, "lens_e1", "lens_e2", "n", "R_e", "amplitude")
    lens = preset_model("deeplense", binning=2, free=free)
    counts, _, smooth = fitted(3, sersic_n=1.0)
    result = fit_smooth_lens(counts[smooth], lens)
    assert result.converged.all()
    assert not foreign(counts[smooth], result, lens).any()


def test_a_little_ellipticity_or_another_psf_shows_in_smooth_lenses_whose_chi2_does_not():
    for other in ({"lens_q": 0.9, "lens_phi": 0.5}, {"psf_sigma": 0.9 * 0.08625}, {"psf_sigma": 1.1 * 0.08625}):
        counts, result, smooth = fitted(9, **other)
        assert (result.chi2[smooth] < 1.3).all()
        assert foreign(counts, result, LENS)[smooth].all(), other


def test_strong_substructure_does_not_pass_for_another_lens():
    counts, result, smooth = fitted(60)
    strong = result.chi2 > 1.2
    assert strong.sum() > 25
    assert foreign(counts, result, LENS)[strong].double().mean() <= 0.06
    assert not foreign(counts, result, LENS)[smooth].any()
