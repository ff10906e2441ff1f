import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

from d4lens.errors import D4LensError
from d4lens.params import ArmParams, DownloadParams, EvaluateParams, TrainParams, check
from d4lens.studies import mismatch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def common(tmp_path, monkeypatch):
    """stages/common.py in a folder with copies of the parameters files."""
    spec = importlib.util.spec_from_file_location("stages_common", ROOT / "stages" / "common.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "stages_common", module)
    spec.loader.exec_module(module)
    (tmp_path / "profiles").mkdir()
    for path in ("params.yaml", "profiles/smoke/params.yaml", "profiles/full/params.yaml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text((ROOT / path).read_text())
    monkeypatch.chdir(tmp_path)
    return module


def change(path: str, edit) -> None:
    values = yaml.safe_load(Path(path).read_text())
    edit(values)
    Path(path).write_text(yaml.safe_dump(values))


def test_a_profile_adds_its_scale_to_what_all_share(common):
    quick, smoke = (common.parameters("train", TrainParams, name) for name in ("quick", "smoke"))
    assert quick.batch_size == smoke.batch_size
    assert smoke.epochs < quick.epochs
    assert common.parameters("download", DownloadParams, "full").n_train == 30000
    all_, full = (common.parameters("mismatch", mismatch.Parameters, name) for name in ("quick", "full"))
    assert (full.images, full.arms) == (300, all_.arms)
    assert all_.images < full.images


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda v: v.update(trainn={}), "unknown group 'trainn' in params.yaml"),
        (lambda v: v["studies"].update(astrology={}), "unknown group 'astrology' in 'studies' of params.yaml"),
        (lambda v: v.update(layers={}), "unknown group 'layers' in params.yaml"),
        (lambda v: v["profile"].update(evalute={}), "unknown group 'evalute' in 'profile' of params.yaml"),
        (lambda v: v["train"].update(epoch=3), "unknown key 'epoch' in group 'train'"),
        (lambda v: v["train"].pop("batch_size"), "missing key 'batch_size' in group 'train'"),
        (lambda v: v["train"].update(batch_size="many"), "wrong value 'many' for 'batch_size'"),
        (lambda v: v["train"].update(batch_size=0), "wrong value 0 for 'batch_size'"),
        (lambda v: v["train"].update(learning_rate=float("nan")), "'learning_rate'"),
        (lambda v: v["train"].update(losses=3), "'losses'"),
        (lambda v: v.update(train=[1]), "'train' in params.yaml must be a group of keys"),
        (lambda v: v.update(profile="quick"), "'profile' of params.yaml must be a group of keys"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(common, edit, sentence):
    change("params.yaml", edit)
    with pytest.raises(D4LensError) as caught:
        common.parameters("train", TrainParams, "quick")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_said(common):
    with pytest.raises(D4LensError, match=r"no parameters file .*; run from .* one of quick, full, smoke"):
        common.parameters("train", TrainParams, "huge")
    Path("params.yaml").write_text("train: [1\n")
    with pytest.raises(D4LensError, match="not valid YAML in line"):
        common.parameters("train", TrainParams, "quick")
    Path("params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(D4LensError, match="not UTF-8"):
        common.parameters("train", TrainParams, "quick")


def test_numbers_may_be_written_as_dvc_reads_them(common):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("learning_rate: 2.0e-3", "learning_rate: 2e-3"))
    assert common.parameters("train", TrainParams, "quick").learning_rate == 2e-3


def test_a_group_that_is_no_group_is_refused():
    for value in (None, 3, "resnet18"):
        with pytest.raises(D4LensError, match="must be a group of keys"):
            check(ArmParams, value, "arm 'resnet18'")
    assert check(EvaluateParams, {"batch_size": 1, "bootstrap": 100, "seed": 0}, "x").bootstrap == 100


def test_a_stage_ends_a_mistake_with_its_sentence_and_status_one(common, capsys):
    @common.one_sentence
    def main() -> None:
        raise D4LensError("what, where, what to do")

    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value.code).endswith(": what, where, what to do")
