import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from d4lens.errors import D4LensError
from d4lens.macrofit import (
    TABLE_COLUMNS,
    SmoothLensModel,
    fit_marginal,
    fit_smooth_lens,
    open_model,
    preset_model,
    split,
)

BINNED = preset_model("deeplense", binning=2)
WRITTEN = ["train_fit.csv", "train_residual.npy", "train_significance.npy"]
OPTIONS = {"fine_iterations": 6, "threads": 1}


@pytest.fixture(scope="module")
def counts(lenses):
    return lenses[0][:10].reshape(10, 75, 2, 75, 2).sum((2, 4)).numpy().astype(np.uint16)


@pytest.fixture
def paths():
    return [f"train/no/{i}.npy" for i in range(1, 11)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(split, "PIECE", 4)


class Interrupting:
    """`fit_smooth_lens` that stops at call number `at`, and counts the images it was given."""

    def __init__(self, at=None):
        self.at, self.calls, self.seen = at, 0, 0

    def __call__(self, counts, model, **options):
        if self.calls == self.at:
            raise KeyboardInterrupt
        self.calls += 1
        self.seen += len(counts)
        return fit_smooth_lens(counts, model, **options)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_split_becomes_files_that_hold_the_fit(counts, paths, tmp_path):
    folder = tmp_path / "macrofit"
    table = split.fit_split(counts, paths, BINNED, folder, "train", source="a", **OPTIONS)
    result = fit_smooth_lens(torch.from_numpy(counts.astype(np.float32)), BINNED, **OPTIONS)
    assert sorted(files(folder)) == WRITTEN
    residual = np.load(folder / "train_residual.npy", allow_pickle=False)
    assert residual.dtype == np.float16
    assert np.array_equal(residual, result.residual.numpy().astype(np.float16))
    read = pd.read_csv(folder / "train_fit.csv", float_precision="round_trip")
    assert tuple(read.columns) == TABLE_COLUMNS
    pd.testing.assert_frame_equal(read, result.table(paths), check_exact=True)
    pd.testing.assert_frame_equal(table, read, check_exact=True)
    assert not (tmp_path / "macrofit.partial").exists()


def test_an_interruption_costs_one_piece_and_no_byte(counts, paths, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    split.fit_split(counts, paths, BINNED, whole, "train", source="a", **OPTIONS)
    folder = tmp_path / "cut"
    monkeypatch.setattr(split, "fit_smooth_lens", Interrupting(at=2))
    with pytest.raises(KeyboardInterrupt):
        split.fit_split(counts, paths, BINNED, folder, "train", source="a", **OPTIONS)
    assert not folder.exists()
    again = Interrupting()
    monkeypatch.setattr(split, "fit_smooth_lens", again)
    split.fit_split(counts, paths, BINNED, folder, "train", source="a", **OPTIONS)
    assert again.seen == 2  # 4 and 4 of 10 were done
    assert files(folder) == files(whole)


@pytest.mark.parametrize("change", ["source", "options", "model", "length", "damage"])
def test_pieces_of_another_fit_are_not_used(change, counts, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(split, "fit_smooth_lens", Interrupting(at=2))
    with pytest.raises(KeyboardInterrupt):
        split.fit_split(counts, paths, BINNED, tmp_path / "m", "train", source="a", **OPTIONS)
    again = Interrupting()
    monkeypatch.setattr(split, "fit_smooth_lens", again)
    arguments = {"source": "a", **OPTIONS}
    model = BINNED
    if change == "source":
        arguments["source"] = "b"
    elif change == "options":
        arguments["fine_iterations"] = 7
    elif change == "model":
        model = preset_model("deeplense", binning=2, free=(*BINNED.free, "sky"))
    elif change == "length":
        counts, paths = counts[:9], paths[:9]
    else:
        (tmp_path / "m.partial" / "train" / "residual.npy").write_bytes(b"\x93NUMPY")
    split.fit_split(counts, paths, model, tmp_path / "m", "train", **arguments)
    assert again.seen == len(counts)


def test_changed_code_starts_afresh(counts, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(split, "fit_smooth_lens", Interrupting(at=1))
    with pytest.raises(KeyboardInterrupt):
        split.fit_split(counts, paths, BINNED, tmp_path / "m", "train", source="a", **OPTIONS)
    note = tmp_path / "m.partial" / "train" / "fingerprint.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "code": "other"}))
    again = Interrupting()
    monkeypatch.setattr(split, "fit_smooth_lens", again)
    split.fit_split(counts, paths, BINNED, tmp_path / "m", "train", source="a", **OPTIONS)
    assert again.seen == 10


def test_an_interruption_at_the_very_end_fits_nothing_again(counts, paths, tmp_path, monkeypatch):
    real = split.os.replace

    def full(source, target):
        if str(target).endswith("train_residual.npy"):
            raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(split.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        split.fit_split(counts, paths, BINNED, tmp_path / "m", "train", source="a", **OPTIONS)
    monkeypatch.setattr(split.os, "replace", real)
    again = Interrupting()
    monkeypatch.setattr(split, "fit_smooth_lens", again)
    split.fit_split(counts, paths, BINNED, tmp_path / "m", "train", source="a", **OPTIONS)
    assert again.seen == 0
    assert sorted(files(tmp_path / "m")) == WRITTEN


def test_residuals_too_large_for_half_precision_are_clipped(counts, paths, tmp_path):
    wild = counts.copy()
    wild[0, 0, 0] = 65535
    known = {**BINNED.constants, "sky": 1e-3}
    model = SmoothLensModel(BINNED.observation, known, ("theta_E", "source_x", "source_y"), binning=2)
    split.fit_split(wild, paths, model, tmp_path / "m", "train", source="a", **OPTIONS)
    residual = np.load(tmp_path / "m" / "train_residual.npy", allow_pickle=False)
    assert np.isfinite(residual).all()
    assert residual[0, 0, 0] == np.finfo(np.float16).max


def test_normalised_images_are_fitted_as_pseudo_counts(counts, paths, tmp_path):
    values = counts.astype(np.float64)
    low, high = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
    values = ((values - low) / (high - low)).astype(np.float32)
    model = preset_model("deeplense", binning=2, units="normalised")
    table = split.fit_split(values, paths, model, tmp_path / "m", "train", source="a", units="normalised", **OPTIONS)
    known = fit_smooth_lens(torch.from_numpy(counts.astype(np.float32)), BINNED, **OPTIONS)
    smooth = [0, 3, 6, 9]  # class "no"
    found = torch.tensor(table[["theta_E", "source_x", "source_y"]].to_numpy()[smooth])
    assert (found - known.parameters[smooth][:, [0, 3, 4]]).abs().max() < 0.01
    assert (table["chi2"][smooth] < 1.5).all()


def test_each_image_is_fitted_with_what_is_known_of_it(counts, paths, tmp_path):
    native = BINNED.observation
    known = [replace(native, psf_sigma=0.08), replace(native, psf_sigma=0.1)]
    folder = tmp_path / "macrofit"
    options = {"source": "a", "smooth_lens": "marginal", "observations": known}
    split.fit_split(counts[:2], paths[:2], BINNED, folder, "train", **options)
    residuals = np.load(folder / "train_residual.npy", allow_pickle=False)
    for image, observation, residual in zip(counts, known, residuals):
        alone = fit_marginal(torch.from_numpy(image[None].astype(np.float32)), open_model(observation, 2))
        assert np.array_equal(residual, alone.residual[0].numpy().astype(np.float16))


@pytest.mark.parametrize("smooth_lens", ["specialist", "auto"])
def test_what_is_known_of_each_image_is_refused_where_no_fit_would_read_it(counts, paths, tmp_path, smooth_lens):
    options = {"source": "a", "smooth_lens": smooth_lens, "observations": [BINNED.observation] * 10}
    with pytest.raises(D4LensError, match=f"need macrofit.model marginal, not {smooth_lens}"):
        split.fit_split(counts, paths, BINNED, tmp_path / "macrofit", "train", **options)
    assert list(tmp_path.iterdir()) == []
