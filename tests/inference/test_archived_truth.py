import zipfile

import pytest
import torch

from d4lens.data import images
from d4lens.errors import D4LensError
from d4lens.inference.archived_truth import true_substructure
from d4lens.observation import Observation
from d4lens.simulator import PRESETS, DataSet, draw, substructure_convergence, write_archive

NATIVE = PRESETS["deeplense"].observation


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two images a class."""
    path = tmp_path_factory.mktemp("archive") / "six.zip"
    write_archive(path, DataSet(PRESETS["deeplense"], 3, 6, 0))
    return path


@pytest.fixture(scope="module")
def unpacked(archive):
    """The same as a folder."""
    folder = archive.with_suffix("")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder


@pytest.mark.parametrize("grid", [NATIVE, NATIVE.binned(2)])
def test_the_truth_of_each_image_is_found_in_zip_and_folder(archive, unpacked, grid):
    truth = draw(PRESETS["deeplense"], 3, range(6))
    expected = dict(zip(truth.images["path"], substructure_convergence(truth, grid), strict=True))
    for place in (archive, unpacked):
        found = list(images.find([place]))
        assert len(found) == 6
        for source in found:
            path = "/".join(source.name.replace(": ", "/").split("/")[-3:])
            label, kappa = true_substructure(source, grid)
            assert label == path.split("/")[1]
            assert torch.equal(kappa, expected[path])
            assert (kappa.max() > 0.01) == (label != "no")


def test_an_image_from_elsewhere_has_none(archive, unpacked, tmp_path):
    (tmp_path / "1.npy").write_bytes((unpacked / "dataset/train/no/1.npy").read_bytes())
    (source,) = images.find([tmp_path / "1.npy"])
    assert true_substructure(source, NATIVE) is None
    assert true_substructure(images.ImageSource("0", source.read), NATIVE) is None
    wider = Observation(150, 0.1, 0.08625, 10.0)
    assert true_substructure(next(images.find([archive])), wider) is None


def test_damaged_tables_are_named(unpacked, tmp_path):
    folder = tmp_path / "dataset"
    (folder / "train" / "no").mkdir(parents=True)
    for name in ("truth.csv", "subhalos.csv", "preset.json", "train/no/1.npy"):
        (folder / name).write_bytes((unpacked / "dataset" / name).read_bytes())
    (folder / "preset.json").write_text("{}")
    (source,) = images.find([folder])
    with pytest.raises(D4LensError, match=r"dataset cannot be read .*mend or remove them"):
        true_substructure(source, NATIVE)
