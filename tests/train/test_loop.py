import json
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from d4lens import imports, models
from d4lens.data import arrays
from d4lens.errors import D4LensError
from d4lens.files import sole_writer
from d4lens.models import scores, weights
from d4lens.params import ArmParams, NetworkParams, Training, of_training
from d4lens.simulator import substructure_convergence
from d4lens.train import checkpoint, fingerprint, loop, train_network
from d4lens.train.lenses import load_lenses

ROOT = Path(__file__).resolve().parents[2]
OUTS = ["history.csv", "model.safetensors", "timing.json"]
# The lens engine and every loss: all that has a state.
PINN = ("d4lenspinn", {"fields": [1, 2]})
CNN = ("d4cnn", {"fields": [1, 2, 2]})


class Listener:
    """A tracker that remembers, and that can pull the plug after an epoch."""

    def __init__(self, stop_after=None, error=KeyboardInterrupt):
        self.rows, self.stop_after, self.error = {}, stop_after, error

    def log_metrics(self, metrics, step):
        self.rows[step] = metrics
        if step == self.stop_after:
            raise self.error


def run(dataset, root, arm=CNN, seed=1, tracker=None, params=None, **folders):
    name, options = arm
    work = folders.get("work", root / "work")
    return train_network(*dataset, root / "out", work, name, options, seed, params, tracker)


def outcome(root):
    return {name: (root / "out" / name).read_bytes() for name in OUTS[:2]}


def test_the_outs_hold_the_best_epoch_and_all_about_it(dataset, tmp_path, params):
    listener = Listener()
    best = run(dataset, tmp_path, tracker=listener, params=params())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == OUTS
    history = pd.read_csv(tmp_path / "out" / "history.csv", float_precision="round_trip")
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert best["epoch"] == history["select_auc_macro"].idxmax() + 1
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert [listener.rows[epoch]["loss"] for epoch in (1, 2, 3, 4)] == history["loss"].tolist()
    net, config = models.load(tmp_path / "out" / "model.safetensors")
    assert config["fingerprint"] == fingerprint(*dataset, *CNN, 1, params())
    assert (config["name"], config["seed"], config["epoch"]) == ("d4cnn", 1, best["epoch"])
    assert {"torch", "escnn", "timm"} <= set(config["versions"])
    timing = json.loads((tmp_path / "out" / "timing.json").read_text())
    assert set(timing) == {"train_minutes", "images_per_second", "parameters"}
    assert timing["images_per_second"] > 0
    # What was selected is what was saved: the loaded weights give the epoch's score again.
    select = load_lenses(*dataset, "select", net.needs, arrays.load_observation(dataset[0]))
    with torch.no_grad():
        logits = net(select[range(len(select))])["logits"]
    assert scores.score(select.labels, scores.softmax(logits))["auc_macro"] == pytest.approx(best["select_auc_macro"])
    (kept,) = (tmp_path / "work").glob("*.safetensors")
    assert kept.stat().st_size < 2 * (tmp_path / "out" / "model.safetensors").stat().st_size


def test_lost_outs_come_again_from_a_finished_training_at_no_cost(dataset, tmp_path, params, caplog, monkeypatch):
    """As after a DVC was killed while its trainer lived on: the next DVC removes the outs and calls again."""
    best = run(dataset, tmp_path, PINN, params=params(epochs=2))
    first = {name: (tmp_path / "out" / name).read_bytes() for name in OUTS}
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(loop, "_fit", None)  # whoever trains, fails
    listener = Listener()
    assert run(dataset, tmp_path, PINN, tracker=listener, params=params(epochs=2)) == best
    assert {name: (tmp_path / "out" / name).read_bytes() for name in OUTS} == first
    assert sorted(listener.rows) == [1, 2]
    assert f"trained already, its outs are written again; remove {tmp_path / 'work'} to train anew" in caplog.text


def test_the_same_again_gives_the_same_bytes_and_another_seed_others(dataset, tmp_path, params):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(dataset, tmp_path / name, seed=seed, params=params(epochs=2))
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    assert outcome(tmp_path / "a")["model.safetensors"] != outcome(tmp_path / "c")["model.safetensors"]


@pytest.fixture(scope="module")
def undisturbed(make_dataset, params, tmp_path_factory):
    """What four epochs of PINN end with."""
    root = tmp_path_factory.mktemp("undisturbed")
    run(make_dataset(root / "data"), root, PINN, params=params())
    return outcome(root)


@pytest.mark.parametrize("arm", [PINN, ("resnet18", {})])
def test_two_epochs_and_two_are_four(dataset, tmp_path, params, arm):
    run(dataset, tmp_path / "whole", arm, params=params())
    with pytest.raises(SystemExit) as stopped:  # Ctrl-C, as Lightning passes it on
        run(dataset, tmp_path / "parts", arm, tracker=Listener(2), params=params())
    assert stopped.value.code != 0
    assert not (tmp_path / "parts" / "out").exists()
    listener = Listener()
    run(dataset, tmp_path / "parts", arm, tracker=listener, params=params())
    assert sorted(listener.rows) == [1, 2, 3, 4]
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")


def test_even_the_optimiser_is_the_same_after_a_resume(dataset, tmp_path, params, monkeypatch):
    """The checkpoint of the fourth epoch: weights, best weights, optimiser and history, all equal."""
    monkeypatch.setattr(checkpoint, "finish", lambda *_: None)
    run(dataset, tmp_path / "whole", params=params())
    with pytest.raises(SystemExit):
        run(dataset, tmp_path / "parts", tracker=Listener(3), params=params())
    run(dataset, tmp_path / "parts", params=params())
    digests = loop._digests(*dataset, *CNN, 1, params())
    whole, parts = (checkpoint.latest(tmp_path / name / "work", digests) for name in ("whole", "parts"))
    assert whole.epoch == parts.epoch == 4
    assert whole.history == parts.history
    assert {name.split(".")[0] for name in whole.tensors} == {"model", "best", "optimizer"}
    assert whole.tensors.keys() == parts.tensors.keys()
    assert all(torch.equal(whole.tensors[name], parts.tensors[name]) for name in whole.tensors)


# One training in a process of its own that does something to itself at a chosen moment.
VICTIM = """
import json, os, signal, sys
from pathlib import Path
import lightning as L
from d4lens.params import TrainParams
from d4lens.train import train_network
from d4lens.train.module import TrainingModule

root, folder, fits, arm, params, signal_name, moment = (json.loads(word) for word in sys.argv[1:])
die = lambda: os.kill(os.getpid(), getattr(signal, signal_name))
if moment == "in mid-epoch":
    step = TrainingModule.training_step
    def patched(self, batch, batch_idx):
        if (self.epoch, batch_idx) == (1, 1):
            die()
        return step(self, batch, batch_idx)
    TrainingModule.training_step = patched
else:
    replace = os.replace
    def patched(source, target):
        if "epoch-00003" in str(target):
            half = Path(source).read_bytes()
            Path(target).write_bytes(half[: len(half) // 2])  # as a disk that tears the write would leave it
            die()
        replace(source, target)
    os.replace = patched
name, options = arm
train_network(folder, fits, Path(root) / "out", Path(root) / "work", name, options, 1, TrainParams(**params))
"""


@pytest.mark.parametrize(
    ("signal_name", "moment", "code", "epochs_left"),
    [
        ("SIGKILL", "in mid-epoch", -signal.SIGKILL, ["epoch-00001.safetensors"]),
        ("SIGTERM", "in mid-epoch", 143, ["epoch-00001.safetensors"]),
        ("SIGINT", "in mid-epoch", 1, ["epoch-00001.safetensors"]),  # Ctrl-C
        ("SIGKILL", "in mid-save", -signal.SIGKILL, [f"epoch-0000{epoch}.safetensors" for epoch in (1, 2, 3)]),
    ],
)
def test_killed_at_any_moment_it_ends_as_if_it_never_was(
    dataset, undisturbed, tmp_path, params, signal_name, moment, code, epochs_left
):
    root = tmp_path / "killed"
    words = (str(root), *map(str, dataset), PINN, params().model_dump(), signal_name, moment)
    command = [sys.executable, "-c", textwrap.dedent(VICTIM), *map(json.dumps, words)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert killed.returncode == code, killed.stderr[-2000:]
    assert sorted(path.name for path in (root / "work").glob("epoch-*")) == epochs_left
    run(dataset, root, PINN, params=params())
    assert undisturbed == outcome(root)


def test_a_changed_parameter_starts_afresh_saying_so(dataset, tmp_path, params, caplog):
    with pytest.raises(SystemExit):
        run(dataset, tmp_path / "b", tracker=Listener(1), params=params())
    changed = params(learning_rate=1e-3)
    run(dataset, tmp_path / "a", params=changed)
    run(dataset, tmp_path / "b", params=changed)
    assert "starting afresh: the parameters changed" in caplog.text
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


@pytest.mark.parametrize("arm", [PINN, ("d4lenspinn_published", {"fields": [1, 2], "head": "nano"}), ("resnet18", {})])
def test_all_code_that_runs_in_a_training_is_in_its_fingerprint(make_dataset, tmp_path, params, arm):
    dataset = make_dataset(tmp_path / "data", {"train": 3, "select": 3, "test": 3})
    package, ran = imports.SOURCE / "d4lens", set()

    def note(frame, event, _):
        if event == "call":
            ran.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        run(dataset, tmp_path, arm, params=params(epochs=1))
    finally:
        sys.setprofile(None)
    parts = {Path(file) for file in ran if file.startswith(f"{package}/")}
    hashed = (package / "train" / "loop.py", *(package / "models" / f"{module}.py" for module in models.MODULES))
    outside = parts.difference(*map(imports.closure, hashed))
    assert package / "train" / "loop.py" in parts
    assert {path.stem for path in outside} <= set(imports.APART)


@dataclass
class Second:
    """The second of two processes; the first has `theirs`."""

    theirs: dict[str, str]
    rank: int = 1
    is_main: bool = False

    def total(self, values):
        return [float(int(digest[:12], 16)) + value for digest, value in zip(self.theirs.values(), values)]


def test_a_process_that_would_train_otherwise_than_the_first_refuses():
    mine = checkpoint.digests({"seed": 1}, {"precision": "32-true"})
    loop._agree(mine, Second(mine))
    first = checkpoint.digests({"seed": 1}, {"precision": "bf16-mixed"})
    with pytest.raises(D4LensError, match="process 1 has other processes, device and precision than the first"):
        loop._agree(mine, Second(first))


def test_other_threads_go_on_with_a_warning_and_the_same_without(dataset, tmp_path, params, caplog, monkeypatch):
    for stop in (1, 2):
        with pytest.raises(SystemExit):
            run(dataset, tmp_path, tracker=Listener(stop), params=params(epochs=4))
    assert "threads" not in caplog.text
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    with pytest.raises(SystemExit):
        run(dataset, tmp_path, tracker=Listener(3), params=params(epochs=4))
    assert "going on with 99 threads" in caplog.text
    caplog.clear()
    monkeypatch.undo()
    run(dataset, tmp_path, params=params(epochs=4))
    assert "99" in caplog.text, "once mixed, always told"


def test_a_second_writer_is_turned_away(dataset, tmp_path, params):
    with sole_writer(tmp_path / "work"), pytest.raises(D4LensError, match="another process is writing"):
        run(dataset, tmp_path, params=params())


def test_a_loss_that_is_not_finite_stops_with_its_step_and_images(dataset, tmp_path, params):
    residual = np.load(dataset[1] / "train_residual.npy")
    residual[7, 3, 3] = np.nan
    np.save(dataset[1] / "train_residual.npy", residual)
    with pytest.raises(D4LensError, match=r"not finite at step \d \(epoch 1, batch \d; classification\)") as error:
        run(dataset, tmp_path, ("d4cnn_residual", {"fields": [1, 2]}), params=params())
    rows = json.loads(str(error.value).split("rows ")[1].split(" of")[0])
    assert 7 in rows
    assert len(rows) <= 5
    tensors, facts = weights.read(tmp_path / "work" / "nonfinite.safetensors")
    assert facts["rows"] == rows
    assert facts["bad"] == ["classification"]
    bad = ~torch.isfinite(tensors["batch.residual"]).all((1, 2))
    assert tensors["batch.index"][bad].tolist() == [7]
    assert {"out.logits", "loss.classification"} <= set(tensors)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("n_pixels", "size", "batch"), [(33, 6, 4), (34, 3, 1)])
@pytest.mark.parametrize("name", ["d4lenspinn", "d4lenspinn_published", "d4cnn_residual"])
def test_ragged_batches_single_images_and_odd_sizes_train(make_dataset, tmp_path, params, name, n_pixels, size, batch):
    folders = make_dataset(tmp_path / "data", {"train": size, "select": 3, "test": 3}, n_pixels)
    options = {"fields": [1, 2], **({"head": "nano"} if "published" in name else {})}
    best = run(folders, tmp_path, (name, options), params=params(epochs=1, batch_size=batch))
    assert np.isfinite(list(best.values())).all()


def test_weights_of_losses_are_obeyed_and_their_values_logged(dataset, tmp_path, params):
    quiet = dict.fromkeys(params().losses.model_dump(), 0.0)
    run(dataset, tmp_path, PINN, params=params(epochs=1, losses=quiet))
    row = pd.read_csv(tmp_path / "out" / "history.csv").iloc[0]
    assert row["loss"] == row["classification"]
    loud = {**quiet, "convergence": 2.0, "sparsity": 3.0}
    run(dataset, tmp_path / "loud", PINN, params=params(epochs=1, losses=loud))
    row = pd.read_csv(tmp_path / "loud" / "out" / "history.csv").iloc[0]
    assert row["loss"] == pytest.approx(row["classification"] + 2 * row["convergence"] + 3 * row["sparsity"])
    assert {"total_variation", "centre", "poisson", "consistency"} <= set(row.index)


def test_the_whole_lens_teaches_ever_less(dataset, tmp_path, params):
    """Its weight falls linearly over the steps: here four epochs of as many steps each."""
    losses = {**dict.fromkeys(params().losses.model_dump(), 0.0), "lens_convergence": 2.0}
    arm = ("d4lenspinn_published", {"fields": [1, 2]})
    run(dataset, tmp_path, arm, params=params(epochs=4, batch_size=16, learning_rate=1e-9, losses=losses))
    rows = pd.read_csv(tmp_path / "out" / "history.csv")
    steps = 4 * -(-len(np.load(dataset[0] / "train.npy", mmap_mode="r")) // 16)
    weight = (rows["loss"] - rows["classification"]) / rows["lens_convergence"]
    # the mean weight of an epoch, but for the batches' different errors
    means = 2 * (1 - np.arange(steps).reshape(4, -1).mean(1) / steps)
    np.testing.assert_allclose(weight, means, rtol=0.1)


def test_a_frozen_unet_keeps_its_weights(dataset, tmp_path, params):
    arm = ("d4lenspinn_published", {"fields": [1, 2], "frozen": True})
    for epochs in (1, 2):
        run(dataset, tmp_path / str(epochs), arm, params=params(epochs=epochs))
    first, then = (
        dict(models.load(tmp_path / epochs / "out" / "model.safetensors")[0].named_parameters()) for epochs in "12"
    )
    same = {name.split(".")[0] for name in first if torch.equal(first[name], then[name])}
    assert {name.split(".")[0] for name in first} - same == {"head", "standardise"}
    assert all(torch.equal(first[name], then[name]) for name in first if name.startswith("unet."))


def test_the_published_recipe_trains_in_two_phases_from_one_set_of_weights(dataset, tmp_path):
    """As params.yaml has it, but for the ImageNet weights and one epoch a phase, on a dozen images."""
    arms, networks = (yaml.safe_load((ROOT / "params.yaml").read_text())[name] for name in ("arms", "networks"))
    shared = yaml.safe_load((ROOT / "params.yaml").read_text())["train"]
    arm, network = ArmParams(**arms["published_recipe"]), NetworkParams(**networks["d4lenspinn_published"])
    options = {**arm.options, "pretrained": False}
    phases = []
    for own in (arm.train | arm.first, arm.train):
        own = own | {"epochs": 1, "losses": {**arm.train["losses"], **own["losses"]}}
        phases.append(
            of_training(Training("published_recipe", 1), arm.model_copy(update={"train": own}), network, shared, {}, "")
        )
    first, then = phases
    assert (first.learning_rate, then.learning_rate) == (7.11e-4, 4.46e-4)
    assert (first.losses.poisson, then.losses.poisson) == (0.0, 1e-2)
    assert (then.weight_decay, then.augment, then.batch_size) == (1.46e-3, False, 64)
    given = ("d4lenspinn_published", options, 1)
    train_network(*dataset, tmp_path / "first", tmp_path / "w1", *given, first)
    start = tmp_path / "first" / "model.safetensors"
    train_network(*dataset, tmp_path / "then", tmp_path / "w2", *given, then, start=start)
    rows = [pd.read_csv(tmp_path / name / "history.csv") for name in ("first", "then")]
    assert rows[0]["loss"][0] == pytest.approx(rows[0]["classification"][0])
    assert rows[1]["loss"][0] > rows[1]["classification"][0]
    before, after = (
        dict(models.load(tmp_path / name / "model.safetensors")[0].named_parameters()) for name in ("first", "then")
    )
    torch.manual_seed(loop.epoch_seed(1, loop._BUILD))
    fresh = dict(models.build(given[0], arrays.load_observation(dataset[0]), **options).eval().named_parameters())
    kept = {name for name in after if torch.equal(before[name], after[name])}
    held = ("head.conv_stem.", "head.bn1.", "head.blocks.0.", "head.blocks.1.")
    assert kept == {name for name in after if name.startswith(held)}
    assert all(torch.equal(fresh[name], after[name]) for name in kept)
    assert sum(after[name].numel() for name in kept) / 1e6 == pytest.approx(0.32, abs=0.02)
    # one step of AdamW moves a weight by no more than the rate: the second phase begins where the first ended
    name = "head.blocks.3.0.conv_pw.weight"
    assert (after[name] - before[name]).abs().max() < then.learning_rate < (after[name] - fresh[name]).abs().max()
    # another start, another training
    other = weights.read(tmp_path / "then" / "model.safetensors")[1]["fingerprint"]
    assert other != fingerprint(*dataset, *given, then)


def test_a_limit_takes_so_many_images_and_the_larger_set_contains_the_smaller(dataset, tmp_path, params):
    observation = arrays.load_observation(dataset[0])
    images = load_lenses(*dataset, "train", ["counts", "residual"], observation, convergence=substructure_convergence)
    few, more = images.first(4, seed=3), images.first(9, seed=3)
    assert set(few.rows) < set(more.rows)
    assert set(few.rows) != set(images.first(4, seed=4).rows)
    for name in ("counts", "residual", "label"):
        assert torch.equal(few[[0, 3]].need(name), images[few.rows[[0, 3]]].need(name))
    assert few[[0, 3]].index.tolist() == few.rows[[0, 3]].tolist()
    run(dataset, tmp_path, PINN, params=params(epochs=1, limit=4))
    assert models.load(tmp_path / "out" / "model.safetensors")[1]["n_train"] == 4
    with pytest.raises(D4LensError, match=r"train\.limit is 999 but the split train holds \d+ images"):
        run(dataset, tmp_path, PINN, params=params(limit=999))


def test_the_learning_rate_warms_up_and_falls_to_zero(dataset, tmp_path, params):
    net = models.build("d4cnn", arrays.load_observation(dataset[0]), fields=[1, 2])
    module = loop.TrainingModule(net, None, params(learning_rate=1.0), 0, checkpoint.Progress(), tmp_path)
    rates = [module.learning_rate(step, 100) for step in range(100)]
    assert rates[0] < 0.1
    assert rates.index(max(rates)) == 10
    assert max(rates) == 1.0
    assert rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_norms_and_biases_are_not_decayed(dataset, tmp_path, params):
    net = models.build("d4lenspinn", arrays.load_observation(dataset[0]), fields=[1, 2])
    module = loop.TrainingModule(net, None, params(), 0, checkpoint.Progress(), tmp_path)
    shrunk, free = module.configure_optimizers().param_groups
    names = {id(p): name for name, p in net.named_parameters()}
    assert {name for p in shrunk["params"] if (name := names[id(p)]).endswith("bias") or "norm" in name} == set()
    assert "unet.project.conv.weights" in {names[id(p)] for p in shrunk["params"]}
    assert len(shrunk["params"]) + len(free["params"]) == len(names)
    assert free["weight_decay"] == 0


def test_missing_folders_and_unknown_names_are_one_sentence(dataset, tmp_path, params):
    with pytest.raises(D4LensError, match="there is no folder"):
        train_network(tmp_path / "none", None, tmp_path / "out", tmp_path / "work", *CNN, 1, params())
    with pytest.raises(D4LensError, match="unknown network"):
        run(dataset, tmp_path, ("resnet", {}), params=params())
    with pytest.raises(D4LensError, match="run the macrofit stage first"):
        train_network(dataset[0], None, tmp_path / "out", tmp_path / "work", "d4cnn_residual", {}, 1, params())


def test_auto_precision_is_bfloat16_only_where_hardware_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for supported, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        assert loop.precision("auto") == expected
    assert loop.precision("bf16-mixed") == "bf16-mixed"


def test_bfloat16_training_resumes_exactly_too(dataset, tmp_path, params):
    chosen = params(precision="bf16-mixed")
    run(dataset, tmp_path / "whole", PINN, params=chosen)
    with pytest.raises(SystemExit):
        run(dataset, tmp_path / "parts", PINN, tracker=Listener(1), params=chosen)
    run(dataset, tmp_path / "parts", PINN, params=chosen)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")
