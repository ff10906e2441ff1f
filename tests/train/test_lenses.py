import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d4lens.data import arrays
from d4lens.errors import D4LensError
from d4lens.simulator import substructure_convergence
from d4lens.train.lenses import EpochBatches, augment, epoch_seed, load_lenses

EVERYTHING = ("counts", "residual", "significance", "fit")


def rows(batches, epoch):
    batches.set_epoch(epoch)
    return list(batches)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.integers(1, 4))
def test_an_epoch_shows_every_image_once_and_all_ranks_step_together(size, batch, epoch, world):
    ranks = [rows(EpochBatches(size, batch, 3, rank=rank, world=world), epoch) for rank in range(world)]
    assert {len(part) for part in ranks} == {len(EpochBatches(size, batch, 3, world=world))}
    assert all(len(b) <= batch for part in ranks for b in part)
    seen = [row for part in ranks for b in part for row in b]
    assert set(seen) == set(range(size))
    assert len(seen) - size < world


def test_the_order_hangs_on_seed_and_epoch_alone():
    first, resumed = EpochBatches(50, 8, 1), EpochBatches(50, 8, 1, first=2)
    for epoch in range(3):
        assert rows(first, epoch + 2) == rows(resumed, epoch)
    assert rows(first, 0) != rows(first, 1)
    assert rows(first, 0) != rows(EpochBatches(50, 8, 2), 0)
    assert rows(first, 0) == rows(EpochBatches(50, 8, 1), 0)


def test_no_two_epochs_seeds_or_ranks_share_their_random_numbers():
    seeds = {epoch_seed(seed, epoch, rank) for seed in range(5) for epoch in range(5) for rank in range(3)}
    assert len(seeds) == 75


def test_a_batch_is_the_rows_asked_for(dataset):
    folder, fits = dataset
    observation = arrays.load_observation(folder)
    lenses = load_lenses(folder, fits, "train", EVERYTHING, observation)
    batch = lenses[[4, 0]]
    counts = np.load(folder / "train.npy")
    assert batch.counts.dtype == torch.float32
    assert np.array_equal(batch.counts.numpy(), counts[[4, 0]])
    assert np.array_equal(batch.residual.numpy(), np.load(fits / "train_residual.npy")[[4, 0]])
    assert batch.label.tolist() == [arrays.load_split(folder, "train").labels[row] for row in (4, 0)]
    assert batch.index.tolist() == [4, 0]
    assert batch.fit.shape == (2, 7)
    assert batch.kappa is None
    assert set(load_lenses(folder, None, "train", ("counts",), observation)[[0]].entries()) == {
        "counts",
        "label",
        "index",
    }


def test_the_truth_is_the_simulators_own_convergence(dataset):
    folder, fits = dataset
    observation = arrays.load_observation(folder)
    lenses = load_lenses(folder, fits, "train", ("counts",), observation, convergence=substructure_convergence)
    truth = arrays.load_truth(folder, "train")
    expected = substructure_convergence(truth, observation)
    kappa = lenses[range(len(lenses))].kappa
    assert torch.allclose(kappa, expected, rtol=1e-3, atol=1e-6)
    empty = torch.from_numpy(lenses.labels == 0)
    assert kappa[empty].abs().max() == 0
    assert kappa[~empty].amax((1, 2)).min() > 0.001


def test_a_training_may_keep_to_some_presets(dataset):
    """The rows keep their numbers; a smaller set is drawn among them; without a truth all images count."""
    folder, fits = dataset
    observation = arrays.load_observation(folder)
    table = pd.read_csv(folder / "truth.csv")
    table.loc[1::3, "preset"] = "deeplense_turned"
    table.to_csv(folder / "truth.csv", index=False)
    truth = arrays.load_truth(folder, "train").images
    wanted = np.flatnonzero(truth["preset"] == "deeplense")
    assert 0 < len(wanted) < len(truth)
    options = dict(presets=["deeplense"], convergence=substructure_convergence)
    whole = load_lenses(folder, fits, "train", EVERYTHING, observation, convergence=substructure_convergence)
    kept = load_lenses(folder, fits, "train", EVERYTHING, observation, **options)
    assert kept[range(len(kept))].index.tolist() == wanted.tolist()
    for name, values in kept[range(len(kept))].entries().items():
        assert torch.equal(values, whole[wanted].entries()[name]), name
    fewer = kept.first(2, 0)
    assert set(fewer[[0, 1]].index.tolist()) < set(wanted.tolist())
    with pytest.raises(D4LensError, match=r"no image of the split train was drawn from survey; mend train\.presets"):
        load_lenses(folder, fits, "train", EVERYTHING, observation, presets=["survey"])
    (folder / "truth.csv").unlink()
    assert len(load_lenses(folder, fits, "train", EVERYTHING, observation, presets=["deeplense"])) == len(whole)


def test_without_truth_there_is_no_kappa(dataset):
    folder, fits = dataset
    (folder / "truth.csv").unlink()
    lenses = load_lenses(
        folder, fits, "train", ("counts",), arrays.load_observation(folder), convergence=substructure_convergence
    )
    assert lenses[[0]].kappa is None


def test_augmentation_turns_each_image_with_all_that_belongs_to_it(dataset):
    folder, fits = dataset
    lenses = load_lenses(
        folder, fits, "train", EVERYTHING, arrays.load_observation(folder), convergence=substructure_convergence
    )
    batch = lenses[[0, 1, 2, 3, 4]]
    elements = torch.tensor([6, 0, 3, 6, 1])
    turned = augment(batch, elements)
    assert sorted(turned.index.tolist()) == [0, 1, 2, 3, 4]
    for place, row in enumerate(turned.index.tolist()):
        alone = lenses[[row]].turned(int(elements[row]))
        for name, value in alone.entries().items():
            assert torch.equal(getattr(turned, name)[place], value[0]), (name, row)


def change_fit(fits, **columns):
    table = pd.read_csv(fits / "train_fit.csv")
    for name, (row, value) in columns.items():
        table.loc[row, name] = value
    table.to_csv(fits / "train_fit.csv", index=False)


def test_a_fit_that_is_missing_or_of_other_images_is_refused(dataset, tmp_path):
    folder, fits = dataset
    observation = arrays.load_observation(folder)
    with pytest.raises(D4LensError, match="run the macrofit stage first"):
        load_lenses(folder, None, "train", EVERYTHING, observation)
    with pytest.raises(D4LensError, match=r"cannot be read .* run macrofit again"):
        load_lenses(folder, tmp_path, "train", EVERYTHING, observation)
    change_fit(fits, gamma1=(3, float("nan")))
    with pytest.raises(D4LensError, match=r"train_fit.csv row 3 holds a value that is not finite"):
        load_lenses(folder, fits, "train", EVERYTHING, observation)
    change_fit(fits, path=(2, "train/no/999.npy"), gamma1=(3, 0.1))
    with pytest.raises(D4LensError, match="is of other images"):
        load_lenses(folder, fits, "train", EVERYTHING, observation)


def test_a_pickled_residual_is_refused(dataset):
    folder, fits = dataset
    np.save(fits / "train_residual.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(D4LensError, match="cannot be read"):
        load_lenses(folder, fits, "train", EVERYTHING, arrays.load_observation(folder))
