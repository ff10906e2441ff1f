import hashlib
import json
import zipfile

import numpy as np
import pandas as pd
import pytest

from d4lens.classes import CLASSES
from d4lens.data import arrays, preprocess
from d4lens.data.archive import Entry
from d4lens.data.images import prepare
from d4lens.data.images.formats import read_npy
from d4lens.data.preprocess import Row, build_arrays, carve, orbit_digest
from d4lens.errors import D4LensError
from d4lens.observation import Observation
from d4lens.simulator import preset, render
from d4lens.simulator.dataset import DataSet, write_archive

TELESCOPE = {"pixel_scale": 0.05, "psf_sigma": 0.08625, "sky": 10.0}


def run(archive, folder, **changes):
    otherwise = changes.pop("otherwise", Observation(48, **TELESCOPE))
    return build_arrays(archive, folder, otherwise, **{"select_fraction": 0.25, "seed": 1, **changes})


@pytest.fixture
def refused(tmp_path, pack, small_tree):
    """Build from the small tree with changes (None removes a file); the sentence, once nothing proved to be left."""

    def refuse(changes: dict[str, bytes | None], **options) -> str:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        files = {name: data for name, data in {**small_tree, **changes}.items() if data is not None}
        with pytest.raises(D4LensError) as error:
            run(pack(files), out / "arrays", **options)
        assert list(out.iterdir()) == []
        return str(error.value)

    return refuse


@pytest.mark.parametrize("factor", [1, 2])
def test_arrays_hold_the_images_photon_by_photon(tmp_path, pack, make, factor):
    files = make.tree(8, 2, n_pixels=120)
    facts = run(pack(files), tmp_path / "arrays", factor=factor)
    seen = set()
    manifest = pd.read_csv(tmp_path / "arrays" / "manifest.csv").set_index("path")
    assert tuple(manifest.reset_index()[list(arrays.MANIFEST_COLUMNS)].columns) == arrays.MANIFEST_COLUMNS
    for split in arrays.SPLITS:
        data = arrays.load_split(tmp_path / "arrays", split)
        assert isinstance(data.counts, np.memmap)
        assert data.counts.dtype == np.uint16
        assert len(data) == len(data.labels) == len(data.counts)
        for counts, label, path in zip(data.counts, data.labels, data.paths):
            number = list(files).index(f"dataset/{path}")
            true = make.photons(number, 120)
            assert np.array_equal(counts, true.reshape(120 // factor, factor, 120 // factor, factor).sum((1, 3)))
            # The way that prediction takes leads to the same counts.
            seen_by_predict = prepare(
                read_npy(files[f"dataset/{path}"], path), arrays.load_observation(tmp_path / "arrays")
            )
            assert seen_by_predict.standard
            assert np.array_equal(seen_by_predict.pixels, counts)
            assert path.split("/")[1] == CLASSES[label] == manifest.loc[path, "class"]
            assert (manifest.loc[path, "k_min"], manifest.loc[path, "n_levels"]) == (true.min(), np.ptp(true))
            assert manifest.loc[path, "sha256"] == hashlib.sha256(files[f"dataset/{path}"]).hexdigest()
            assert (path.split("/")[0] == "val") == (split == "test")
            seen.add(path)
        assert facts["images"][split] == {name: int((data.labels == CLASSES.index(name)).sum()) for name in CLASSES}
    assert len(seen) == 30
    assert facts["images"]["select"] == dict.fromkeys(CLASSES, 2)
    observation = arrays.load_observation(tmp_path / "arrays")
    assert (observation.n_pixels, observation.pixel_scale) == (120 // factor, 0.05 * factor)
    assert (observation.sky, observation.psf_sigma) == (10.0 * factor**2, 0.08625)
    assert facts == arrays.load_facts(tmp_path / "arrays")
    assert facts["units"] == "counts"
    assert facts["archive_sha256"] == hashlib.sha256((tmp_path / "lenses.zip").read_bytes()).hexdigest()
    assert arrays.load_truth(tmp_path / "arrays", "train") is None
    assert {path.name for path in (tmp_path / "arrays").iterdir()} == {
        *("train.npy", "select.npy", "test.npy", "manifest.csv", "observation.json")
    }


def test_images_with_skies_of_their_own_come_back_photon_by_photon(tmp_path):
    kind = preset("survey_deep")
    write_archive(tmp_path / "lenses.zip", DataSet(kind, 2, 12, 6))
    facts = run(tmp_path / "lenses.zip", tmp_path / "arrays", psf_sigma=0.07, sky=20.0, factor=2)
    assert facts["units"] == "counts"
    test = arrays.load_split(tmp_path / "arrays", "test")
    truth = arrays.load_truth(tmp_path / "arrays", "test")
    true = render(truth, kind).numpy()
    assert truth.images["image_sky"].max() > 3 * truth.images["image_sky"].min()
    assert np.array_equal(truth.images["darkest"], true.min((1, 2)))
    assert np.array_equal(test.counts, true.reshape(6, 75, 2, 75, 2).sum((2, 4)))


def test_genuine_images_pass_and_keep_their_photons(real_samples, tmp_path, pack):
    """Three of each class as train, two as val."""
    files = {}
    for path in sorted(real_samples.glob("*/*.npy")):
        split = "train" if int(path.stem) <= 3 else "val"
        files[f"dataset/{split}/{path.parent.name}/{path.name}"] = path.read_bytes()
    run(pack(files), tmp_path / "arrays", select_fraction=0.34)
    split = arrays.load_split(tmp_path / "arrays", "test")
    manifest = pd.read_csv(tmp_path / "arrays" / "manifest.csv").query("split == 'test'")
    for counts, path, n, k_min in zip(split.counts, split.paths, manifest["n_levels"], manifest["k_min"]):
        genuine = np.load(real_samples / path.removeprefix("val/"))[0]
        assert np.abs((counts.astype(float) - k_min) / n - genuine).max() < 1e-9


def test_the_same_archive_gives_the_same_bytes_and_replaces_old_arrays(tmp_path, pack, small_tree):
    archive = pack(small_tree)
    run(archive, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "stale.npy").write_bytes(b"old")
    run(archive, tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    run(archive, tmp_path / "c", seed=2)
    chosen = [set(arrays.load_split(tmp_path / name, "select").paths) for name in ("a", "c")]
    assert chosen[0] != chosen[1]


def test_images_that_are_no_counts_are_scaled(tmp_path, pack, make, small_tree):
    files = {}
    for number, name in enumerate(small_tree):
        image = make.photons(number) + np.random.default_rng(number).normal(size=(48, 48))
        files[name] = make.npy(((image - image.min()) / np.ptp(image)).astype(np.float32))
    assert run(pack(files), tmp_path / "arrays", factor=2)["units"] == "normalised"
    split = arrays.load_split(tmp_path / "arrays", "train")
    assert split.counts.dtype == np.float32
    assert split.counts.shape[1:] == (24, 24)
    assert (split.counts.min((1, 2)) == 0).all()
    assert (split.counts.max((1, 2)) == 1).all()
    for image, path in zip(split.counts, split.paths):
        data = files[f"dataset/{path}"]
        assert np.array_equal(prepare(read_npy(data, path), arrays.load_observation(tmp_path / "arrays")).pixels, image)


@pytest.mark.parametrize("kind", ["no sky is known", "levels coarser than photons"])
def test_images_without_an_exact_photon_scale_are_scaled(tmp_path, pack, make, small_tree, kind):
    files, scaled = {}, {}
    for number, name in enumerate(small_tree):
        counts = make.photons(number)
        image = (counts - counts.min()) / np.ptp(counts)
        image = image if kind == "no sky is known" else np.rint(image * 63) / 63
        files[name], scaled[name.removeprefix("dataset/")] = make.npy(image), image.reshape(24, 2, 24, 2).sum((1, 3))
    sky = {"sky": 0.0} if kind == "no sky is known" else {}
    assert run(pack(files), tmp_path / "arrays", factor=2, **sky)["units"] == "normalised"
    split = arrays.load_split(tmp_path / "arrays", "train")
    for image, path in zip(split.counts, split.paths):
        assert np.allclose(image, (scaled[path] - scaled[path].min()) / np.ptp(scaled[path]), atol=1e-5)
    if sky:  # prediction does as training did
        grid = arrays.load_observation(tmp_path / "arrays")
        assert prepare(read_npy(files[f"dataset/{path}"], path), grid).units == "normalised"


def test_a_published_image_is_taken_whole(tmp_path, pack, make, small_tree):
    counts = make.photons(0)
    counts[4:16, 4:16] = counts.max()  # which prediction takes for saturated
    name = next(iter(small_tree))
    assert run(pack({**small_tree, name: make.npy(make.disguise(counts))}), tmp_path / "arrays")["units"] == "counts"
    split = arrays.load_split(tmp_path / "arrays", "train")
    other = arrays.load_split(tmp_path / "arrays", "select")
    images = dict(zip([*split.paths, *other.paths], [*split.counts, *other.counts]))
    assert np.array_equal(images[name.removeprefix("dataset/")], counts)
    grid = arrays.load_observation(tmp_path / "arrays")
    assert np.isnan(prepare(read_npy(make.npy(make.disguise(counts)), name), grid).pixels[4:16, 4:16]).all()


def test_what_is_wrong_with_an_image_is_said_with_its_name(refused, make):
    good = make.disguise(make.photons(99))
    nan = good.copy()
    nan[0, 3, 4] = np.nan
    random = np.random.default_rng(0).random((1, 48, 48))
    where = "dataset/train/vort/3.npy"
    for data, sentence in (
        (b"", "is empty"),
        (make.npy(nan), "NaN or infinite, the first in row 3, column 4"),
        (make.npy(np.full((1, 48, 48), 0.5)), "is constant"),
        (make.npy(good[:, :40]), r"has shape (1, 40, 48)"),
        (make.npy(np.concatenate([good, good])), "has shape (2, 48, 48)"),
        (make.npy(make.disguise(make.photons(99, n=40))), "has 40 pixels a side where"),
        (make.npy(good * 2), "has values from 0 to 2"),
        (make.npy(good - 0.1), "has values from -0.1 to 0.9"),
        (make.npy(good.astype(complex)), "type complex128"),
        (make.npy(good.astype(np.float16)), "holds float16"),
        (make.npy((good * 255).astype(np.uint8)), "holds uint8"),
        (make.npy(np.array([[{}]], object)), "pickled Python objects"),
        (make.npy(random), "is normalised where dataset/train/no/1.npy is counts"),
    ):
        assert f"{where}" in (said := refused({where: data})), said
        assert sentence in said
    assert "is counts where dataset/train/no/1.npy is normalised" in refused(
        {"dataset/train/no/1.npy": make.npy(random)}
    )


def test_what_is_not_given_is_what_the_archive_says_or_else_the_presets(tmp_path, pack, small_tree):
    said = {"n_pixels": 48, "pixel_scale": 0.05, "psf_sigma": 0.2, "sky": 10.0}
    own = pack({**small_tree, "dataset/preset.json": json.dumps({"observation": said}).encode()})
    assert run(own, tmp_path / "own")["native"] == said
    assert run(pack(small_tree), tmp_path / "other", psf_sigma=0.07)["native"] == {**said, "psf_sigma": 0.07}
    assert run(pack(small_tree), tmp_path / "third")["native"] == {**said, "psf_sigma": 0.08625}


def test_parameters_that_the_images_contradict_are_refused(refused):
    assert "scatter as a sky of" in refused({}, sky=40.0)
    preset = {"observation": {"n_pixels": 48, "pixel_scale": 0.05, "psf_sigma": 0.2, "sky": 10.0}}
    said = refused({"dataset/preset.json": json.dumps(preset).encode()}, psf_sigma=0.08625)
    assert "was simulated with psf_sigma = 0.2, not 0.08625; mend preprocess.psf_sigma" in said
    assert "describes no observation" in refused({"dataset/preset.json": b"[]"})
    assert "bin = 8 leaves 6 of 48 pixels a side; at least 8 are needed" in refused({}, factor=8)
    assert "bin = 5 leaves 9 of 48 pixels a side; 3 are left over" in refused({}, factor=5)
    assert "pixel_scale must be above 0" in refused({}, pixel_scale=-1.0)
    assert "too few to set select_fraction = 0.25" in refused({f"dataset/train/no/{n}.npy": None for n in (2, 3, 4)})


def test_a_damaged_member_leaves_nothing(tmp_path, pack, small_tree):
    path = pack(small_tree)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("dataset/val/vort/2.npy")  # the last: all else is written by then
    data = bytearray(path.read_bytes())
    data[info.header_offset + 60 + info.compress_size // 2] ^= 0xFF
    path.write_bytes(data)
    out = tmp_path / "out"
    with pytest.raises(D4LensError, match=r"'dataset/val/vort/2\.npy' is damaged"):
        run(path, out / "arrays")
    assert list(out.iterdir()) == []


def test_a_full_disk_leaves_the_old_arrays(tmp_path, pack, small_tree, monkeypatch):
    archive = pack(small_tree)
    run(archive, tmp_path / "arrays")
    before = {path.name: path.read_bytes() for path in (tmp_path / "arrays").iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preprocess, "write_json", full)
    with pytest.raises(D4LensError, match=r"arrays cannot be written: no space left on device"):
        run(archive, tmp_path / "arrays", seed=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "arrays").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays", "lenses.zip"]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("quarter", range(4))
def test_each_of_the_eight_copies_in_val_is_found(refused, make, flip, quarter):
    counts = make.photons(2)  # dataset/train/no/3.npy
    copy = np.rot90(counts[::-1] if flip else counts, quarter)
    said = refused({"dataset/val/no/2.npy": make.npy(make.disguise(copy).astype(np.float32))})
    assert "1 images of val that are exact, rotated or flipped copies of images of train" in said
    assert "(val/no/2.npy = train/no/3.npy)" in said


def test_many_copies_are_counted_and_the_first_named(refused, make):
    said = refused({f"dataset/val/no/{n}.npy": make.npy(make.disguise(make.photons(2))) for n in range(1, 10)})
    assert "holds 9 images of val" in said
    assert said.count("= train/no/3.npy") == 5
    assert "; ...)" in said


def test_copies_in_two_classes_are_refused(refused, make):
    said = refused({"dataset/train/vort/2.npy": make.npy(make.disguise(np.rot90(make.photons(2))))})
    assert "stand in two classes" in said
    assert "train/vort/2.npy = train/no/3.npy" in said


def test_copies_in_train_stay_on_one_side(tmp_path, pack, make):
    files = make.tree(8, 2)
    for number in range(8):  # each image of `no` once more, turned
        copy = np.rot90(make.photons(number), number % 4)[:, :: -1 if number % 2 else 1]
        files[f"dataset/train/no/{number + 101}.npy"] = make.npy(make.disguise(copy))
    for seed in range(5):
        facts = run(pack(files), tmp_path / "arrays", seed=seed)
        chosen = {
            int(path.split("/")[2][:-4])
            for path in arrays.load_split(tmp_path / "arrays", "select").paths
            if "/no/" in path
        }
        assert {number + 100 for number in chosen if number < 100} == {number for number in chosen if number > 100}
        assert facts["images"]["select"] == {"no": 4, "sphere": 2, "vort": 2}


def test_orbit_digest_is_one_for_the_orbit_and_no_other(make):
    images = [make.photons(seed).astype(np.uint16) for seed in range(20)]
    digests = {orbit_digest(image) for image in images}
    assert len(digests) == 20
    for image in images:
        assert {orbit_digest(np.rot90(side, q)) for side in (image, image.T) for q in range(4)} <= digests
    nearly = images[0].copy()
    nearly[5, 7] += 1
    assert orbit_digest(nearly) not in digests


def test_carve_is_stratified_and_does_not_depend_on_the_order(make):
    rows = [
        Row(Entry("train", name, f"train/{name}/{n}.npy", ""), 0, 0, 0.0, "", f"{name}{n}".encode())
        for name, many in zip(CLASSES, (100, 50, 10))
        for n in range(many)
    ]
    selected = carve(rows, 0.1, seed=3)
    chosen = [row.entry.path for row, mine in zip(rows, selected) if mine]
    assert [sum(f"/{name}/" in path for path in chosen) for name in CLASSES] == [10, 5, 1]
    turned = carve(rows[::-1], 0.1, seed=3)
    assert np.array_equal(turned[::-1], selected)
    assert not np.array_equal(carve(rows, 0.1, seed=4), selected)


def truth(small_tree) -> bytes:
    paths = [name.removeprefix("dataset/") for name in small_tree]
    return pd.DataFrame({"path": paths[::-1], "theta_E": np.linspace(1, 1.3, len(paths))}).to_csv(index=False).encode()


def test_truth_comes_aligned_with_the_rows(tmp_path, pack, small_tree):
    tables = {"dataset/truth.csv": truth(small_tree)}
    lumps = pd.DataFrame(
        {"path": ["val/sphere/2.npy", "train/sphere/1.npy", "val/sphere/2.npy"], "x": [0.1, 0.2, 1 / 3]}
    )
    tables["dataset/subhalos.csv"] = lumps.to_csv(index=False).encode()
    run(pack({**small_tree, **tables}), tmp_path / "arrays")
    listed = pd.read_csv(tmp_path / "arrays" / "truth.csv", float_precision="round_trip").set_index("path")["theta_E"]
    for split in arrays.SPLITS:
        data, found = arrays.load_split(tmp_path / "arrays", split), arrays.load_truth(tmp_path / "arrays", split)
        assert list(found.images["path"]) == data.paths
        assert list(found.images["theta_E"]) == [listed[path] for path in data.paths]
    assert list(found.subhalos["path"]) == ["val/sphere/2.npy"] * 2
    assert list(found.subhalos["x"]) == [0.1, 1 / 3]


def test_a_truth_that_does_not_fit_is_refused(refused, small_tree):
    whole = truth(small_tree)
    lines = whole.splitlines(keepends=True)
    for name, data, sentence in (
        ("truth.csv", b"".join(lines[:-1]), "does not list 'train/no/1.npy'"),
        ("truth.csv", whole + lines[-1], "lists an image twice"),
        ("truth.csv", whole + b"train/no/77.npy,1\n", "names 'train/no/77.npy', which is not in the archive"),
        ("truth.csv", b"name\n1\n", "no table with a column 'path'"),
        ("truth.csv", b"", "no table with a column 'path'"),
        ("truth.csv", b"\xff\xfe\x00", "no table with a column 'path'"),
        ("subhalos.csv", b"path,x\nval/no/9.npy,1\n", "names 'val/no/9.npy'"),
    ):
        said = refused({f"dataset/{name}": data})
        assert f"dataset/{name}" in said
        assert sentence in said
