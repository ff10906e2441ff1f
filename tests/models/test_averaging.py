import pytest
import torch
from torch import nn

from d4lens import models
from d4lens.errors import D4LensError
from d4lens.lensing import d4
from d4lens.macrofit.smooth_lens import SmoothLensModel
from d4lens.models import averaging, weights
from d4lens.models.batch import LensBatch, turned_fit
from d4lens.observation import Observation


class Asymmetric(nn.Module):
    """Logits that depend on orientation, through images and fit alike, nonlinearly."""

    def __init__(self, n_pixels=6):
        super().__init__()
        self.image = nn.Linear(2 * n_pixels**2, 5)
        self.last = nn.Linear(12, 3)
        self.seen = []

    def forward(self, batch):
        self.seen.append((batch.counts.dtype, len(batch), self.training, torch.is_inference_mode_enabled()))
        images = torch.cat([batch.counts.flatten(1), batch.residual.flatten(1)], 1)
        return {"logits": self.last(torch.cat([torch.tanh(self.image(images)), batch.fit], 1))}


def make_batches(sizes, n_pixels=6):
    return [
        LensBatch(
            counts=torch.randn(size, n_pixels, n_pixels),
            residual=torch.randn(size, n_pixels, n_pixels),
            fit=torch.randn(size, 7),
            label=torch.arange(size),
        )
        for size in sizes
    ]


def turned(batches, g):
    return [batch.turned(g) for batch in batches]


@pytest.mark.parametrize("g", d4.ELEMENTS)
def test_fit_parameters_turn_with_the_image_they_describe(g):
    observation = Observation(32, 0.1, 0.08, 10.0)
    model = SmoothLensModel(observation, {"n": 1.0, "R_e": 0.25, "amplitude": 200.0}, dtype=torch.float64)
    fit = torch.tensor([[1.0, 0.07, -0.04, 0.12, -0.2, 0.2, 0.1], [0.8, -0.02, 0.09, -0.25, 0.05, -0.1, 0.25]])
    expected = d4.transform(model.image(fit), g)
    torch.testing.assert_close(model.image(turned_fit(fit, g)), expected, rtol=1e-6, atol=1e-6)


def test_every_entry_of_a_batch_turns_and_labels_do_not():
    (batch,) = make_batches([3])
    for g in d4.ELEMENTS:
        out = batch.turned(g)
        assert torch.equal(out.label, batch.label)
        assert torch.equal(out.counts, d4.transform(batch.counts, g))
        assert torch.equal(out.residual, d4.transform(batch.residual, g))
        assert out.significance is None
        back = out.turned(d4.inverse(g)).entries()
        assert all(torch.equal(back[name], value) for name, value in batch.entries().items())


def test_averaging_makes_any_network_invariant():
    model, batches = Asymmetric(), make_batches([4, 4, 1])
    plain, averaged = (averaging.predict_logits(model, batches, tta=choice) for choice in (False, True))
    for g in list(d4.ELEMENTS)[1:]:
        assert (averaging.predict_logits(model, turned(batches, g), tta=False) - plain).abs().max() > 0.01
        torch.testing.assert_close(
            averaging.predict_logits(model, turned(batches, g), tta=True), averaged, rtol=0, atol=2e-6
        )
    by_hand = torch.stack([averaging.predict_logits(model, turned(batches, g), tta=False) for g in d4.ELEMENTS]).mean(0)
    torch.testing.assert_close(averaged, by_hand, rtol=0, atol=2e-6)


@pytest.mark.parametrize("choice", [False, True])
def test_every_image_is_predicted_once_and_in_order_however_batches_are_cut(choice):
    (whole,) = make_batches([11])
    model = Asymmetric()
    expected = averaging.predict_logits(model, [whole], tta=choice)
    assert expected.shape == (11, 3)
    for sizes in ([4, 4, 3], [10, 1], [1] * 11):
        model.seen.clear()
        parts = [whole.rows(cut) for cut in torch.arange(11).split(sizes)]
        torch.testing.assert_close(
            averaging.predict_logits(model, iter(parts), tta=choice), expected, rtol=0, atol=2e-6
        )
        assert sum(size for _, size, _, _ in model.seen) == 11 * (8 if choice else 1)


def test_inference_is_float32_in_eval_mode_whatever_surrounds_it():
    model = Asymmetric().train()
    batches = [make_batches([2])[0].to(dtype=torch.float64)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = averaging.predict_logits(model, batches, tta=False)
    assert torch.equal(inside, averaging.predict_logits(model, batches, tta=False))
    assert inside.dtype == torch.float32
    assert not inside.requires_grad
    assert set(model.seen) == {(torch.float32, 2, False, True)}
    assert model.training


def test_the_exported_form_predicts_where_there_is_one():
    class Exporting(Asymmetric):
        def export(self):
            assert not self.training
            plain = Asymmetric()
            plain.load_state_dict(self.state_dict())
            return plain.double()

    model, batches = Exporting(), make_batches([2])
    network = averaging.exported(model)
    assert type(network) is Asymmetric
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(
        averaging.predict_logits(network, batches, tta=True), averaging.predict_logits(model, batches, tta=True)
    )
    lone = Asymmetric()
    assert averaging.exported(lone) is lone


def test_nothing_to_predict_and_predictions_that_are_no_numbers_are_refused():
    with pytest.raises(D4LensError, match="no images"):
        averaging.predict_logits(Asymmetric(), [], tta=True)
    batches = make_batches([3, 3])
    batches[1].counts[1] = float("nan")
    with pytest.raises(D4LensError, match="image 4 is not finite"):
        averaging.predict_logits(Asymmetric(), batches, tta=False)


def test_both_views_are_predicted_whole_and_timed_apart():
    model, batches = Asymmetric(), make_batches([4, 3])
    logits, speed = averaging.predict_views(model, lambda: iter(batches))
    assert set(logits) == set(speed) == {"plain", "tta"}
    for view, choice in (("plain", False), ("tta", True)):
        assert torch.equal(logits[view], averaging.predict_logits(model, batches, tta=choice))
        assert speed[view] > 0


def test_a_trained_equivariant_network_is_exported_from_its_file(tmp_path):
    observation = Observation(32, 0.1, 0.08, 10.0)
    network = models.build("d4cnn_residual", observation, fields=(1, 1))
    weights.write(
        tmp_path / "model.safetensors",
        models.state(network),
        models.describe("d4cnn_residual", observation, {"fields": (1, 1)}, network),
    )
    loaded = models.load(tmp_path / "model.safetensors")[0]
    batches = [LensBatch(counts=torch.rand(3, 32, 32) * 20, residual=torch.randn(3, 32, 32))]
    plain = averaging.exported(loaded)
    assert not any("escnn" in type(module).__module__ for module in plain.modules())
    logits = averaging.predict_logits(plain, batches, tta=False)
    torch.testing.assert_close(logits, averaging.predict_logits(network, batches, tta=False), rtol=0, atol=1e-5)
    # invariant already: the average changes rounding only, what no plain network could pass
    torch.testing.assert_close(averaging.predict_logits(plain, batches, tta=True), logits, rtol=0, atol=1e-5)
