import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import referees
import torch
from answers import fit_paths, predict_paths
from scipy.stats import binomtest

from d4lens import load_model, models, predict, simulate
from d4lens.classes import CLASSES
from d4lens.data.images import Header, ImageSource, Raw, find, prepare, read_instrument
from d4lens.errors import D4LensError
from d4lens.flags import Flag, Raised
from d4lens.inference import pipeline
from d4lens.inference.pipeline import (
    FIT_TABLE_COLUMNS,
    PREDICT_COLUMNS,
    choose_lens,
    classify,
    fit_images,
    fit_sources,
    lens_of,
    load_classifier,
)
from d4lens.macrofit import FIT_COLUMNS, TABLE_COLUMNS, fit_smooth_lens
from d4lens.models import weights
from d4lens.observation import Observation
from d4lens.simulator import PRESETS, draw, preset, render

OBSERVATION = Observation(75, 0.1, 0.08625, 40.0)
SIGMAS = [f"sigma_{name}" for name in FIT_COLUMNS]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """An untrained d4lenspinn of 75 pixels, as a file."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    torch.manual_seed(0)
    model = models.build("d4lenspinn", OBSERVATION)
    weights.write(path, models.state(model), models.describe("d4lenspinn", OBSERVATION, {}, model))
    return path


@pytest.fixture(scope="module")
def lenses(tmp_path_factory):
    """A folder of four simulated images, min-max normalised as the published ones."""
    folder = tmp_path_factory.mktemp("lenses")
    preset = PRESETS["deeplense"]
    for i, counts in enumerate(render(draw(preset, 3, range(4)), preset)):
        k = np.asarray(counts)
        np.save(folder / f"{i + 1}.npy", ((k - k.min()) / (k.max() - k.min()))[None])
    return folder


def test_every_image_gets_a_row_in_order(network, lenses):
    answer = predict_paths([lenses], network)
    table = answer.table
    assert list(table.columns) == list(PREDICT_COLUMNS)
    assert [path[-5:] for path in table["path"]] == ["1.npy", "2.npy", "3.npy", "4.npy"]
    p = table[[f"p_{name}" for name in CLASSES]].to_numpy()
    assert np.allclose(p.sum(1), 1, atol=1e-6)
    assert list(table["label"]) == [CLASSES[row.argmax()] if row.max() >= 0.75 else "" for row in p]
    assert list(table["flag"]) == ["" if row.max() >= 0.75 else "undecided" for row in p]
    assert answer.failures == []


def test_an_image_s_answer_does_not_depend_on_its_company_or_on_native_binning(network, lenses, tmp_path):
    together = predict_paths([lenses], network).table
    alone = predict_paths([lenses / "2.npy"], network).table
    columns = [f"p_{name}" for name in CLASSES] + ["chi2"]
    assert np.allclose(together.loc[1, columns].astype(float), alone.loc[0, columns].astype(float), atol=1e-5)
    # The same photons on 75 pixels, counts as they are.
    preset = PRESETS["deeplense"]
    k = np.asarray(render(draw(preset, 3, [1]), preset))[0].reshape(75, 2, 75, 2).sum((1, 3))
    np.save(tmp_path / "binned.npy", k)
    binned = predict_paths([tmp_path / "binned.npy"], network).table
    assert np.allclose(binned.loc[0, columns].astype(float), alone.loc[0, columns].astype(float), atol=1e-5)


def test_test_time_augmentation_makes_the_answer_invariant(network, lenses, tmp_path):
    image = np.load(lenses / "2.npy")
    np.save(tmp_path / "turned.npy", np.ascontiguousarray(np.rot90(image, axes=(1, 2))))
    columns = [f"p_{name}" for name in CLASSES]
    straight, turned = (
        predict_paths([path], network).table[columns].to_numpy() for path in (lenses / "2.npy", tmp_path / "turned.npy")
    )
    # What is left is that both fits end within a tenth of a standard deviation of one optimum.
    assert np.abs(straight - turned).max() < 5e-3


def test_a_bad_image_is_a_row_with_its_reason_and_stops_no_other(network, lenses, tmp_path):
    good = np.load(lenses / "1.npy")
    np.save(tmp_path / "1.npy", good)
    np.save(tmp_path / "2.npy", np.full_like(good, np.nan))
    np.save(tmp_path / "3.npy", good[:, :100, :100])
    np.save(tmp_path / "4.npy", good + 1e-4 * np.random.default_rng(0).normal(size=good.shape))
    (tmp_path / "5.npy").write_bytes(b"")
    answer = predict_paths([tmp_path], network)
    assert [np.isfinite(p) for p in answer.table["p_no"]] == [True, False, False, True, False]
    flags = list(answer.table["flag"])
    for place, reason in (
        (1, "no pixel within the field of view holds data"),
        (2, "100 pixels a side"),
        (4, "5.npy is empty"),
    ):
        assert flags[place].startswith("failed: ")
        assert reason in flags[place]
    assert len(answer.failures) == 3
    # Without photon counts an image is fitted all the same, with a guess of its noise.
    assert flags[3] == "no photon counts; pixel scale guessed; undecided"
    assert "lattice" in answer.table.loc[3, "processing"]


def test_fit_gives_the_lens_and_flags_what_it_cannot_fit(lenses, tmp_path):
    table = fit_paths([lenses]).table
    assert list(table.columns) == [*TABLE_COLUMNS, "flag", "processing", *SIGMAS]
    assert (table[SIGMAS] > 1e-5).all(None)
    assert table["processing"].str.endswith("fitted: specialist").all()
    truth = draw(PRESETS["deeplense"], 3, range(4)).images
    assert np.allclose(table["theta_E"], truth["theta_E"], atol=0.05)
    assert table["converged"].all()
    np.save(tmp_path / "bad.npy", np.full((1, 150, 150), np.nan))
    failed = fit_paths([tmp_path / "bad.npy"])
    assert not failed.table.loc[0, "converged"]
    assert "no pixel within the field of view holds data" in failed.table.loc[0, "flag"]
    assert len(failed.failures) == 1


def test_an_image_named_twice_is_one_row_and_other_company_changes_nothing(network, lenses, tmp_path):
    answer = predict_paths([lenses / "1.npy", lenses, lenses / "*.npy"], network, tta=False)
    assert [path[-5:] for path in answer.table["path"]] == ["1.npy", "2.npy", "3.npy", "4.npy"]


@pytest.mark.parametrize(
    ("scale", "n", "known"), [(0.07, 107, {}), (0.05, 190, {}), (0.05, 151, {}), (0.1, 64, {"psf": 0.09})]
)
def test_lenses_on_other_pixels_are_found_as_they_are(scale, n, known):
    """The same photons a square arcsec, telescopes apart: the fit finds the lens wherever the pixels lie."""
    area = (scale / 0.05) ** 2
    seen = preset("deeplense", {"n_pixels": n, "pixel_scale": scale, "sersic_amplitude": 100 * area, "sky": 10 * area})
    truth = referees.without_substructure(draw(seen, 3, [0]))
    counts = np.asarray(render(truth, seen))[0]
    source = ImageSource("0", lambda band: Raw(counts.astype(float), Header(scale, "electrons")))
    table = fit_sources([source], instrument=read_instrument(**known), progress=False).table
    assert table.loc[0, "converged"]
    for name in ("theta_E", "gamma1", "gamma2", "source_x", "source_y"):
        assert table.loc[0, name] == pytest.approx(truth.images[name][0], abs=0.02)


def test_only_an_image_like_the_published_ones_gets_the_preset_s_lens(lenses):
    raw = next(find([lenses / "1.npy"])).read(None)
    assert choose_lens(prepare(raw, OBSERVATION), OBSERVATION) is lens_of(OBSERVATION)
    for known, freed in (
        ({"pixel_scale": 0.05}, {"amplitude", "sky"}),
        ({"psf": 0.12}, {"amplitude", "sky"}),
        ({"sky": 12.0}, {"amplitude"}),
    ):
        lens = choose_lens(prepare(raw, OBSERVATION, read_instrument(**known)), OBSERVATION, ("n",))
        assert set(lens.free) - set(lens_of(OBSERVATION).free) == freed | {"n"}
        assert lens.observation.psf_sigma == pytest.approx(known.get("psf", 0.08625))
        if "sky" in known:
            assert lens.constants["sky"] * lens.binning**2 == pytest.approx(48)
    with pytest.raises(D4LensError, match="'R' is no parameter of the smooth lens"):
        choose_lens(prepare(raw, OBSERVATION), OBSERVATION, ("R",))


def test_images_that_share_a_lens_are_fitted_together_and_every_one_once(lenses):
    raws = [source.read(None) for source in find([lenses])]
    instruments = [read_instrument(), read_instrument(psf=0.12), read_instrument(), read_instrument(psf=0.12)]
    ready = [prepare(raw, OBSERVATION, known) for raw, known in zip(raws, instruments, strict=True)]
    parts = fit_images(["a", "b", "c", "d"], ready, OBSERVATION)
    assert sorted(name for part in parts for name in part.names) == ["a", "b", "c", "d"]
    for part in parts:
        assert set(part.names) <= {"a", "c"} or set(part.names) <= {"b", "d"}


def test_memory_does_not_grow_with_the_images(monkeypatch):
    """Two batches are held at once: the one that is fitted and the one read ahead."""

    class Image:
        alive = 0

        def __init__(self, *_):
            Image.alive += 1

        def __del__(self):
            Image.alive -= 1

    monkeypatch.setattr(pipeline, "_BATCH", 4)
    monkeypatch.setattr(pipeline, "prepare_source", Image)
    monkeypatch.setattr(pipeline, "fit_images", lambda names, ready, grid, free: [])
    sources = [ImageSource(str(i), lambda band: None) for i in range(40)]
    alive = [
        Image.alive for _ in pipeline.fitted_batches(sources, OBSERVATION, read_instrument(), pipeline.Way(), False)
    ]
    assert len(alive) == 10
    assert all(4 <= number <= 8 for number in alive)


def test_no_image_and_no_weights_are_said(network, tmp_path, monkeypatch):
    with pytest.raises(D4LensError, match="no file or folder"):
        predict_paths([tmp_path / "nowhere"], network)
    monkeypatch.setattr(pipeline, "WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(D4LensError, match="holds no weights"):
        predict_paths([tmp_path])


@pytest.fixture(scope="module")
def turned() -> tuple[np.ndarray, list[str]]:
    """Counts of 30 lenses at every angle, and their classes."""
    every_angle = preset("deeplense", {"gamma_phi": [0.0, np.pi], "source_phi": [0.0, np.pi]})
    truth = draw(every_angle, 17, range(30))
    return render(truth, every_angle).numpy().astype(int), truth.images["class"].tolist()


def scaled(counts: np.ndarray) -> np.ndarray:
    return (counts - counts.min()) / np.ptp(counts)


def rows_of(arrays: list[np.ndarray]) -> list[ImageSource]:
    return [ImageSource(str(i), lambda band, array=array: Raw(array)) for i, array in enumerate(arrays)]


def test_min_max_images_at_every_angle_get_the_answer_of_their_counts(turned):
    counts, _ = turned
    from_counts, from_scaled = (
        classify(rows_of(arrays), load_classifier(), progress=False).table
        for arrays in (list(counts), [scaled(k) for k in counts])
    )
    columns = ["label", *(f"p_{name}" for name in CLASSES), "chi2", "flag"]
    pd.testing.assert_frame_equal(from_scaled[columns], from_counts[columns])


def test_the_fit_gives_a_cropped_field_its_counts(turned):
    """Of which the darkest tenth is lit, so that the estimate is one or two counts too low in a third."""
    grid = Observation(60, 0.1, 0.08625, 40.0)
    cut = [k[15:135, 15:135] for k in turned[0]]
    ready = [prepare(Raw(scaled(k)), grid, read_instrument(pixel_scale=0.05)) for k in cut]
    right = moved = 0
    for part in fit_images([str(i) for i in range(len(cut))], ready, grid):
        for name, image, found in zip(part.names, part.images, part.counts, strict=True):
            k = cut[int(name)]
            right += np.array_equal(found, k.reshape(60, 2, 60, 2).sum((1, 3)))
            moved += any("the fit raised every pixel by" in note for note in image.notes)
    assert right == len(cut)
    assert moved > 3


def test_an_8_bit_picture_is_right_or_flagged(turned):
    counts, truth = turned
    table = classify(rows_of([np.rint(scaled(k) * 255) / 255 for k in counts]), load_classifier(), progress=False).table
    assert table["flag"].str.contains("rough photon scale").all()
    assert table["processing"].str.contains("the values are a file format's levels").all()
    no = np.array(truth) == "no"
    assert (table["label"][no] == "no").all()
    assert (table["label"] == truth).sum() >= 27


def test_every_genuine_image_is_answered(real_samples):
    """How many answers are right is told (`pytest -rP`) and decides nothing: no network is chosen on genuine images."""
    table = predict_paths([real_samples]).table
    truth = [CLASSES.index(path.split("/")[-2]) for path in table["path"]]
    p = table[[f"p_{name}" for name in CLASSES]].to_numpy(float)
    assert p.shape == (15, 3)
    assert np.isfinite(p).all()
    assert np.allclose(p.sum(1), 1, atol=1e-6)
    right = int((p.argmax(1) == truth).sum())
    share = binomtest(right, len(p)).proportion_ci(method="wilson")
    print(f"{right} of {len(p)} right, a share of {share.low:.2f} to {share.high:.2f} (95 %, Wilson)")


def test_the_shipped_weights_say_where_they_come_from():
    tensors, description = weights.read(pipeline.default_weights())
    assert description["licence"] == "MIT"
    assert description["name"] == "d4lenspinn"
    assert description["fingerprint"]
    assert pipeline.default_weights().stat().st_size <= 15e6
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_each_fit_s_maps_go_to_the_network_that_was_trained_on_them():
    both = load_classifier()
    assert both.of("specialist") is both
    assert both.of("marginal") is both.other
    assert (both.model, both.other.model) == ("specialist", "marginal")
    assert both.other.grid.half_width == both.grid.half_width
    assert both.other.grid.n_pixels == both.grid.n_pixels
    alone = load_classifier(pipeline.SURVEY_WEIGHTS)
    assert alone.of("specialist") is alone  # whose flag then says that it read other maps
    size = sum(path.stat().st_size for path in (pipeline.WEIGHTS, pipeline.SURVEY_WEIGHTS))
    assert size <= 15e6


def test_an_elliptical_lens_gets_a_label_and_one_with_light_none():
    lenses = simulate("deeplense", n=9, seed=21, overrides={"lens_q": 0.6, "lens_phi": 0.5})
    answer = predict(lenses.images)
    assert all("fitted: marginal" in done for done in answer.processing)
    assert not any("network of other maps" in flag for flag in answer.flags)
    smooth = np.array([true == "no" for true in lenses.labels])
    assert (answer.probabilities.argmax(1)[smooth] == CLASSES.index("no")).all()
    assert (answer.probabilities[smooth, 0].min() > answer.probabilities[~smooth, 0]).all()
    given = [(label, true) for label, true in zip(answer.labels, lenses.labels, strict=True) if label]
    assert given  # it labels what it is sure of
    assert all(label == true for label, true in given)
    shining = simulate("survey", n=1, seed=3, overrides={"light_peak": 20.0, "snr": 200.0})
    lit = predict(shining.images, einstein_radius=float(shining.truth.images["theta_E"][0]))
    assert lit.labels == [""]
    assert "with the lens galaxy's light, not without" in lit.flags[0]


# escnn cannot be installed by its own metadata without a Fortran compiler: where it is missing, the package predicts all the same.
WITHOUT_ESCNN = """
import sys
sys.modules["escnn"] = None
import d4lens
answer = d4lens.predict(d4lens.simulate(n=3, seed=1).images)
try:
    d4lens.models.build("d4cnn", answer and d4lens.load_model().classifier.grid)
except d4lens.errors.D4LensError as error:
    print(error)
"""


def test_the_packages_weights_predict_without_escnn():
    done = subprocess.run([sys.executable, "-c", WITHOUT_ESCNN], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "needs escnn" in done.stdout


def test_an_image_without_a_lens_does_not_pass_for_a_clean_answer(network, tmp_path):
    noise = np.random.default_rng(0).poisson(50, (150, 150))
    np.save(tmp_path / "noise.npy", noise)
    for table in (predict_paths([tmp_path], network, tta=False).table, fit_paths([tmp_path]).table):
        assert "at its bound: " in table.loc[0, "flag"]
        assert "theta_E" in table.loc[0, "flag"]


def test_without_a_smooth_lens_there_is_no_label_unless_forced(network, lenses, tmp_path, monkeypatch):
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).poisson(50, (150, 150)))
    columns = [f"p_{name}" for name in CLASSES]
    withheld = predict_paths([tmp_path], network, tta=False).table.loc[0]
    forced = predict_paths([tmp_path], network, tta=False, force_label=True).table.loc[0]
    assert withheld["label"] == ""
    assert forced["label"] == CLASSES[int(np.argmax(withheld[columns].to_numpy(float)))]
    assert withheld.drop("label").equals(forced.drop("label"))
    assert withheld[columns].sum() == pytest.approx(1, abs=1e-6)
    found = pipeline.fit_faintest

    def unfinished(*arguments):
        counts, result, raised = found(*arguments)
        return counts, replace(result, converged=torch.zeros_like(result.converged)), raised

    monkeypatch.setattr(pipeline, "fit_faintest", unfinished)
    row = predict_paths([lenses / "1.npy"], network, tta=False, model="specialist").table.loc[0]
    assert (row["label"], row["flag"]) == ("", "not converged; undecided")
    assert row[columns].notna().all()


def test_what_preparing_an_image_raised_is_among_its_flags(network, lenses, monkeypatch):
    ready = pipeline.images.prepare
    flags = (Raised(Flag.UNSEEN_RING),)
    monkeypatch.setattr(pipeline.images, "prepare", lambda *given: replace(ready(*given), flags=flags))
    assert predict_paths([lenses / "1.npy"], network, tta=False).table.loc[0, ["label", "flag"]].tolist() == [
        "",
        "too little of the ring is seen; undecided",
    ]
    assert fit_paths([lenses / "1.npy"]).table.loc[0, "flag"] == "too little of the ring is seen"


def test_an_image_with_less_noise_than_photons_is_flagged(tmp_path):
    lens = PRESETS["deeplense"]
    np.save(tmp_path / "lens.npy", np.asarray(render(draw(lens, 3, [0]), lens))[0].astype(np.float32))
    instruments = (read_instrument(gain=gain, pixel_scale=0.05) for gain in (1.0, 0.1))
    flags = [fit_paths([tmp_path], instrument=known).table.loc[0, "flag"] for known in instruments]
    assert flags == ["", "too little noise; photons already"]


def test_pixels_too_coarse_or_too_fine_for_the_field_are_refused(network, lenses):
    answer = predict_paths([lenses / "1.npy"], network, instrument=read_instrument(pixel_scale=50.0))
    assert "pixels of 50 arcsec are too coarse" in answer.table.loc[0, "flag"]
    answer = predict_paths([lenses / "1.npy"], network, instrument=read_instrument(pixel_scale=1e-7))
    assert "pixels of 1e-07 arcsec are too fine" in answer.table.loc[0, "flag"]


def test_what_was_guessed_or_stated_twice_stands_in_the_table():
    lens = PRESETS["deeplense"]
    counts = np.asarray(render(draw(lens, 3, [0]), lens))[0]
    gains = {"gain": (("ATODGAIN", 1.0), ("CCDGAIN", 2.0))}
    x = np.arange(-20, 21)
    oval = np.exp(-0.5 * ((x / 2.4) ** 2 + (x[:, None] / 1.2) ** 2))
    for header, psf, flag in (
        (Header(0.05, "electron"), None, ""),
        (Header(None, "electron"), None, "pixel scale guessed"),
        (Header(0.05, "ct", None, 1.0, statements=gains), None, "header disagrees on the gain: ATODGAIN 1, CCDGAIN 2"),
        (Header(0.05, "electron"), oval, "PSF is not round"),
    ):
        source = ImageSource("0", lambda band, header=header: Raw(counts.astype(float), header))
        assert flag in fit_sources([source], instrument=read_instrument(psf=psf), progress=False).table.loc[0, "flag"]
        if not flag:
            assert fit_sources([source], progress=False).table.loc[0, "flag"] == ""


def test_what_is_freed_comes_with_its_error(lenses, tmp_path):
    np.save(tmp_path / "bad.npy", np.full((1, 150, 150), np.nan))
    table = fit_paths([lenses / "1.npy", tmp_path / "bad.npy"], free=("lens_e1", "theta_E", "lens_x")).table
    freed = [column for name in ("lens_e1", "lens_x", "amplitude", "sky") for column in (name, f"sigma_{name}")]
    assert list(table.columns) == [*FIT_TABLE_COLUMNS, *SIGMAS, *freed]
    assert np.abs(table.loc[0, ["lens_e1", "lens_x"]].astype(float)).max() < 0.02  # simulated round and centred
    assert 1e-4 < table.loc[0, "sigma_lens_e1"] < 1e-2
    assert table.loc[1, table.columns[-4:]].isna().all()


# Right answers or none: what lies in an image's way, and where the lens lies. Smooth lenses of the issue's seed, the whole kinds
# counted once by hand; the rest of the structured images' labels are the network's own.
SMOOTH = simulate("deeplense", n=9, seed=12).images[::3]


def labels_and_flags(images, **known):
    answer = load_model().predict(images, tta=False, **known)
    return list(answer.labels), list(answer.flags), answer


@pytest.mark.parametrize("n", [110, 130, 140])
def test_a_field_smaller_than_the_network_s_is_no_structure(n):
    lenses = simulate("deeplense", n=6, seed=12, overrides={"n_pixels": n, "pixel_scale": 0.05}).images[::3]
    labels, flags, answer = labels_and_flags(lenses, pixel_scale=0.05)
    assert labels == ["no", "no"]
    assert flags == ["", ""]
    assert f"no data beyond {n} x {n} of 150 x 150 pixels" in answer.processing[0]


def test_where_too_little_of_the_ring_is_seen_no_label_is_given():
    lenses = simulate("deeplense", n=6, seed=12, overrides={"n_pixels": 64, "pixel_scale": 0.05, "theta_E": 1.4}).images
    labels, flags, _ = labels_and_flags(lenses, pixel_scale=0.05)
    assert labels == [""] * 6
    assert all("too little of the ring is seen" in flag for flag in flags)


def test_masked_pixels_carry_no_weight_and_are_counted():
    hidden = np.zeros((150, 150), bool)
    hidden[100:103, 100:103] = True
    spoilt = np.where(hidden, 300 + 50 * np.random.default_rng(0).random((150, 150)), SMOOTH)
    assert labels_and_flags(spoilt, gain=1)[0] != ["no"] * 3
    for given, known in (
        (np.ma.masked_array(spoilt, np.broadcast_to(hidden, spoilt.shape)), {}),
        (np.where(hidden, np.nan, spoilt), {}),
        (np.where(hidden, np.inf, spoilt), {}),
        (spoilt, {"mask": hidden}),
        (spoilt, {"mask": [hidden] * 3}),
        (np.where(hidden, 0, SMOOTH), {}),
        (np.where(hidden, 400, SMOOTH), {}),
    ):
        labels, flags, answer = labels_and_flags(given, **known)
        assert (labels, flags) == (["no"] * 3, [""] * 3)
        assert all("9 pixels masked" in text for text in answer.processing)


def test_a_mask_that_cannot_be_is_said():
    for mask, sentence in (
        (np.ones((150, 150)), "no pixel within the field of view holds data"),
        (np.ones((10, 12)), "150 x 150 pixels and its mask 12 x 10"),
    ):
        _, flags, _ = labels_and_flags(SMOOTH[:1], mask=mask)
        assert sentence in flags[0]
    with pytest.raises(D4LensError, match="2 masks were given for 3 images"):
        labels_and_flags(SMOOTH, mask=np.ones((2, 150, 150)))
    for mask in (3, "abc", ["a", 3]):
        with pytest.raises(D4LensError):
            labels_and_flags(SMOOTH, mask=mask)


@pytest.mark.parametrize(
    "moved",
    [SMOOTH[:, :149, :149], SMOOTH[:, :, :149], np.roll(SMOOTH, (0, 1), (1, 2)), np.roll(SMOOTH, (2, -1), (1, 2))],
)
def test_a_lens_off_the_centre_is_found(moved):
    known = {} if moved.shape[1:] == (150, 150) else {"pixel_scale": 0.05}
    labels, flags, answer = labels_and_flags(moved, **known)
    assert (labels, flags) == (["no"] * 3, [""] * 3)
    assert all("lens found at" in text for text in answer.processing)
    assert max(answer.chi2) < 1.06


def test_a_lens_far_off_the_centre_is_said():
    _, flags, _ = labels_and_flags(np.roll(SMOOTH, (6, 4), (1, 2)))
    assert all("off centre" in flag for flag in flags)


def test_a_lens_at_the_centre_stays_there_to_the_bit():
    """Substructure gains deviance by a shift too; the published images are centred, and keep their numbers."""
    lenses = simulate("deeplense", n=12, seed=12).images
    answer = load_model().predict(lenses, tta=False)
    assert not any("lens found at" in text for text in answer.processing)
    counts = torch.from_numpy(np.stack([image.reshape(75, 2, 75, 2).sum((1, 3)) for image in lenses]))
    assert np.array_equal(answer.chi2, fit_smooth_lens(counts, lens_of(load_model().classifier.grid)).chi2.numpy())


def test_a_psf_that_the_image_contradicts_is_flagged():
    lenses = simulate("deeplense", n=6, seed=12)
    smooth = lenses.images[[label == "no" for label in lenses.labels]]
    for psf, factor in ((0.07, 0.08625 / 0.07), (0.08625, None), (0.105, 0.08625 / 0.105)):
        flags = predict(smooth, pixel_scale=0.05, psf=psf).flags
        if factor is None:
            assert flags == [""] * len(smooth)
        else:
            shown = [
                float(re.search(r"PSF disagrees: the image's is ([\d.]+) times as wide", flag)[1]) for flag in flags
            ]
            assert shown == pytest.approx([factor] * len(smooth), rel=0.05)
