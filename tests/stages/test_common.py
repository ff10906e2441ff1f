import importlib.util
import inspect
import sys
from pathlib import Path

import pytest
import yaml

from d4lens import models
from d4lens.errors import D4LensError
from d4lens.params import ArmParams, DownloadParams, EvaluateParams, Training, check_group
from d4lens.studies import mismatch

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ["quick", *sorted(path.name for path in (ROOT / "profiles").iterdir())]
PINN = Training("d4lenspinn", 0)


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
    quick, smoke = (common.training_parameters(name, PINN)[1][-1] for name in ("quick", "smoke"))
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
        (lambda v: v["arms"].pop("d4lenspinn"), "no arm 'd4lenspinn' in params.yaml; its arms are d4cnn,"),
        (
            lambda v: v["arms"]["d4cnn"].update(network="cnn"),
            "no network 'cnn', which arm 'd4cnn' names; there are d4cnn,",
        ),
        (lambda v: v["arms"]["d4lenspinn"].update(trian={}), "unknown key 'trian' in 'd4lenspinn' in 'arms'"),
        (lambda v: v["networks"]["d4cnn"].update(learning_rate=0), "wrong value 0 for 'learning_rate'"),
        (lambda v: v.update(networks=3), "'networks' in params.yaml must be a group of named networks"),
        (lambda v: v.update(train=[1]), "'train' in params.yaml must be a group of keys"),
        (lambda v: v.update(profile="quick"), "'profile' of params.yaml must be a group of keys"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(common, edit, sentence):
    change("params.yaml", edit)
    with pytest.raises(D4LensError) as caught:
        common.training_parameters("quick", PINN)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_said(common):
    with pytest.raises(D4LensError, match=r"no parameters file .*; run from .* one of quick, full, smoke"):
        common.training_parameters("huge", PINN)
    Path("params.yaml").write_text("train: [1\n")
    with pytest.raises(D4LensError, match="not valid YAML in line"):
        common.training_parameters("quick", PINN)
    Path("params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(D4LensError, match="not UTF-8"):
        common.training_parameters("quick", PINN)


def test_numbers_may_be_written_as_dvc_reads_them(common):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("learning_rate: null", "learning_rate: 2e-3"))
    assert common.training_parameters("quick", PINN)[1][-1].learning_rate == 2e-3


def test_an_arm_with_a_first_phase_has_it_before_its_own(common):
    arm, (first, then) = common.training_parameters("quick", Training("published_recipe", 1))
    assert (first.learning_rate, then.learning_rate) == (arm.first["learning_rate"], arm.train["learning_rate"])
    assert (first.losses.poisson, then.losses.poisson) == (0.0, 1e-2)
    assert first.weight_decay == then.weight_decay == arm.train["weight_decay"]


def test_a_group_that_is_no_group_is_refused():
    for value in (None, 3, "resnet18"):
        with pytest.raises(D4LensError, match="must be a group of keys"):
            check_group(ArmParams, value, "arm 'resnet18'")
    assert check_group(EvaluateParams, {"batch_size": 1, "bootstrap": 100, "seed": 0}, "x").bootstrap == 100


def test_a_stage_ends_a_mistake_with_its_sentence_and_status_one(common, capsys):
    @common.one_sentence
    def main() -> None:
        raise D4LensError("what, where, what to do")

    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value.code).endswith(": what, where, what to do")


@pytest.mark.parametrize("profile", PROFILES)
def test_every_training_of_every_profile_is_valid(common, profile, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = common.measured(profile)
    assert found
    for training in found.values():
        arm, phases = common.training_parameters(profile, training)
        assert len(phases) == 1 + bool(arm.first)
        assert all(params.epochs >= 1 for params in phases)
        options = {key for key in arm.options}
        assert options <= set(inspect.signature(models._MAKERS[arm.network][0]).parameters)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            lambda v: v["profile"].update(arms=["d4cn"]),
            "no arm 'd4cn', named in arms and seeds of profiles/full/params.yaml",
        ),
        (lambda v: v["grids"].update(g={"arms": ["huge"], "seeds": [0]}), "no arm 'huge', named in grid 'g' of"),
        (lambda v: v["grids"].update(g={"arms": ["d4cnn"]}), "missing key 'seeds' in grid 'g' of profiles/full"),
        (lambda v: v["grids"].update(g={"arms": ["d4cnn"], "seeds": [0]}), "two grids of the profile hold d4cnn-0"),
        (lambda v: v["grids"].update(g={"arms": ["d4cnn"], "seeds": [0], "limits": {0: 3}}), "in grid 'g'"),
        (lambda v: v["profile"].pop("seeds"), "missing key 'seeds' in arms and seeds"),
        (lambda v: v.update(grids=[{}]), "'grids' of profiles/full/params.yaml must be a group of named grids"),
    ],
)
def test_a_mistake_in_what_a_profile_measures_is_one_sentence(common, edit, sentence):
    change("profiles/full/params.yaml", edit)
    with pytest.raises(D4LensError) as caught:
        common.measured("full")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_for_all_says_whom_it_does_not_reach(common, capsys):
    common.warn_of_own_values("full")
    assert capsys.readouterr().err == ""
    change("params.yaml", lambda v: v["train"].update(learning_rate=1e-3))
    common.warn_of_own_values("full")
    assert capsys.readouterr().err == ""
    change("profiles/full/params.yaml", lambda v: v["profile"]["arms"].append("resnet18_long"))
    common.warn_of_own_values("full")
    assert capsys.readouterr().err == (
        "warning: train.learning_rate = 0.001 does not reach those that set their own: resnet18_long (0.001)\n"
    )


def test_a_profile_changes_one_value_of_a_nested_group(common):
    quick, full = (common.parameters("download", DownloadParams, profile).simulate for profile in ("quick", "full"))
    assert full.seed != quick.seed
    own = {"seed": quick.seed, "train_presets": quick.train_presets}
    assert full.model_copy(update=own) == quick
