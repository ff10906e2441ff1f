import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from d4lens import models
from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.models import weights
from d4lens.models.batch import LensBatch

NAME, OPTIONS = "d4lenspinn", {"fields": [1, 2]}


@pytest.fixture
def saved(tmp_path, observation, batch):
    """A model with moved moments, its file, and its logits."""
    net = models.build(NAME, observation(33), **OPTIONS)
    net(batch(33, 4))
    path = tmp_path / "model.safetensors"
    weights.write(path, models.state(net), models.describe(NAME, observation(33), OPTIONS, net))
    return path, net.eval()(batch(33))["logits"]


def rewrite(path, **changes):
    tensors, description = weights.read(path)
    weights.write(path, tensors, {**description, **changes})


@pytest.mark.parametrize("name", models.NAMES)
def test_every_name_makes_a_model_of_three_classes(name, observation, batch):
    net = models.build(name, observation(40)).eval()
    lenses = LensBatch(**{name: getattr(batch(40), name) for name in net.needs})
    assert net(lenses)["logits"].shape == (2, len(CLASSES))
    assert net(lenses)["logits"].dtype == torch.float32


def test_equal_seeds_make_equal_models(observation):
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(models.state(models.build(NAME, observation(33), **OPTIONS)))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_unknown_names_and_options_are_answered_with_the_known_ones(observation):
    with pytest.raises(D4LensError, match="unknown network 'resnet19'; the networks are resnet18, "):
        models.build("resnet19", observation(33))
    with pytest.raises(D4LensError, match="unknown option 'width' of network d4cnn; its options are channels, fields"):
        models.build("d4cnn", observation(33), width=3)
    with pytest.raises(D4LensError, match="model d4cnn cannot be built"):
        models.build("d4cnn", observation(33), fields=3)


def test_a_file_holds_all_that_is_needed(saved, batch):
    path, logits = saved
    net, config = models.load(path)
    assert not net.training
    assert torch.equal(net(batch(33))["logits"], logits)
    assert config["name"] == NAME
    assert config["options"] == OPTIONS
    assert config["classes"] == ["no", "sphere", "vort"]
    assert config["observation"]["n_pixels"] == 33
    assert config["n_parameters"] == sum(p.numel() for p in net.parameters())


def test_equal_content_gives_equal_bytes(saved, tmp_path):
    path, _ = saved
    weights.write(tmp_path / "again.safetensors", *weights.read(path))
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_the_state_is_that_of_eval_mode_whatever_the_mode(observation):
    net = models.build("d4cnn", observation(33), fields=[1, 2])
    training = models.state(net.train())
    assert net.training
    evaluating = models.state(net.eval())
    assert not net.training
    assert training.keys() == evaluating.keys()
    assert all(torch.equal(training[name], evaluating[name]) for name in training)


@pytest.mark.parametrize("kept", [0, 7, 100, 20000])
def test_a_truncated_file_is_refused(saved, kept):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(D4LensError, match="is truncated or no safetensors file"):
        models.load(path)


def test_a_pickle_is_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"weights": Bomb()}, tmp_path / "model.safetensors")
    with pytest.raises(D4LensError, match="pickles least"):
        models.load(tmp_path / "model.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_files_of_others_are_refused(saved, tmp_path):
    with pytest.raises(D4LensError, match="there is no file"):
        models.load(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(D4LensError, match="was not written by d4lens"):
        models.load(tmp_path / "foreign.safetensors")
    weights.write(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {"name": "resnet18"})
    with pytest.raises(D4LensError, match="its description has no classes, observation, options"):
        models.load(tmp_path / "other.safetensors")


def safetensors(header: dict | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A file by hand: the header's length, the header, the tensors' bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.parametrize(
    "data",
    [
        safetensors(b"{}", length=2**63),
        safetensors(b"{}", length=99_999_999),
        safetensors({"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}),
        safetensors({"a": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 0]}}),
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 400]}}, bytes(8)),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4)),
        safetensors({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors(b"[" * 100_000),
        safetensors(b"\xff\xfe{}"),
    ],
)
def test_a_header_that_claims_what_is_not_there_is_refused(tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(D4LensError, match="is truncated or no safetensors file"):
        models.load(path)


def test_weights_and_description_must_agree(saved):
    path, _ = saved
    rewrite(path, options={"fields": [1, 3]})
    with pytest.raises(D4LensError, match="do not fit the network d4lenspinn"):
        models.load(path)
    rewrite(path, options=OPTIONS, classes=["no", "vort"])
    with pytest.raises(D4LensError, match=r"tells the classes \['no', 'vort'\] apart"):
        models.load(path)


def test_what_cannot_be_json_is_refused_at_writing(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        weights.write(tmp_path / "m.safetensors", {}, {"auc": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_the_file(saved):
    path, _ = saved
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
