import numpy as np
import pytest
import torch

from d4lens.detection import scene_of, search, sensitivity_map
from d4lens.errors import PhysicsError


def looked_at(images, lens, i):
    _, counts, result = images
    return scene_of(counts[i : i + 1], result.rows(slice(i, i + 1)), lens)


@pytest.fixture(scope="module")
def found(images, lens):
    return [search(images[1][i : i + 1], looked_at(images, lens, i)) for i in range(5)]


def test_masses_are_found_where_and_as_heavy_as_they_are(found, images):
    truth = images[0]
    for i, image in enumerate(found[:4]):
        mass, main = truth.subhalos.iloc[i], truth.images["theta_E"].iloc[i]
        first = image.candidates[0]
        assert np.hypot(first.x - mass.x, first.y - mass.y) < 0.1
        assert first.mass == pytest.approx((mass.theta_E / main) ** 2, rel=0.25)
        assert abs(first.theta_E - mass.theta_E) < 4 * first.sigma_theta_E
        assert first.p_false < 1e-6
        assert first.delta_chi2 > 64
        assert image.complete
        assert image.chi2 < 1 + 4 * (2 / 75**2) ** 0.5


def test_a_smooth_lens_has_no_candidate_and_tells_its_highest_maximum(found):
    smooth = found[4]
    assert not smooth.candidates
    assert smooth.complete
    assert 0.01 < smooth.p_false < 1
    assert 1 < smooth.significance < 5


def test_the_limit_on_p_false_decides(found, images, lens):
    p = found[4].p_false
    eager = search(images[1][4:], looked_at(images, lens, 4), p_false=min(1.0, p * 1.01))
    assert eager.candidates or not eager.complete


def test_what_the_map_of_sensitivity_says_would_show_does(images, lens):
    truth, counts, _ = images
    seen = sensitivity_map(looked_at(images, lens, 4))
    five, ten = (sensitivity_map(looked_at(images, lens, 0), sigma=sigma) for sigma in (5.0, 10.0))
    assert torch.allclose(ten.nan_to_num(), 2 * five.nan_to_num(), rtol=1e-5) or ten.isnan().any()
    assert seen.shape == (75, 75)
    assert 0 < float(seen.nan_to_num(1).min()) < 1e-2
    # Linear: the mass that is there shows with its share of the detectable one.
    mass, main = truth.subhalos.iloc[0], truth.images["theta_E"].iloc[0]
    column, row = (round(37 + at / 0.1) for at in (mass.x, mass.y))
    expected = 5 * (mass.theta_E / main) ** 2 / float(five[row, column])
    level = search(counts[:1], looked_at(images, lens, 0)).candidates[0].significance
    assert level == pytest.approx(expected, rel=0.3)


def test_a_sigma_of_nothing_is_refused(images, lens):
    with pytest.raises(PhysicsError, match="sigma"):
        sensitivity_map(looked_at(images, lens, 0), sigma=0.0)
