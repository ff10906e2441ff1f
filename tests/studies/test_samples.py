import numpy as np
import pytest
import torch

from d4lens.errors import D4LensError
from d4lens.observation import Observation
from d4lens.studies import samples


def test_a_pair_differs_in_the_substructure_alone(small_pairs):
    clean, corrupt = small_pairs
    columns = ["theta_E", "gamma1", "gamma2", "source_x", "source_y", "e1", "e2"]
    assert clean.truth.images[columns].equals(corrupt.truth.images[columns])
    assert sorted(set(clean.labels)) == [1, 2]
    assert not corrupt.labels.any()
    assert not torch.equal(clean.batch.counts, corrupt.batch.counts)
    # far from the lens nothing is seen of the masses: the noise is the same
    corner = (clean.batch.counts == corrupt.batch.counts)[:, :5, :5]
    assert corner.double().mean() > 0.9


def test_the_distance_is_that_to_the_mass(small_pairs):
    clean, corrupt = small_pairs
    far = samples.distance(clean)
    assert torch.isnan(samples.distance(corrupt)).all()
    assert torch.isfinite(far).all()
    scale = clean.observation.pixel_scale
    assert (far.flatten(1).min(1).values <= scale).all()
    i = int(np.flatnonzero(clean.labels == 1)[0])
    points = clean.truth.subhalo_arrays()[i]
    _, x, y = points[:, points[0].argmax()]
    row, column = divmod(int(far[i].argmin()), 50)
    assert (column - 24.5) * scale == pytest.approx(x, abs=scale)
    assert (row - 24.5) * scale == pytest.approx(y, abs=scale)


def test_pixels_the_preset_cannot_be_binned_to_are_refused():
    with pytest.raises(D4LensError, match="whole multiple"):
        samples.simulate_samples(2, 1, Observation(64, 0.07, 0.08625, 40.0))
