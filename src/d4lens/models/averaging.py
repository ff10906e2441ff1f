"""Predictions, plain or averaged over the eight symmetries of the square (test-time augmentation).

The average is of logits: up to a constant per image, of log-probabilities, whose softmax is the normalised geometric
mean of the eight predictions. A D4-invariant network's logits are equal in all eight views, so averaging changes it by
rounding only, and any other network becomes exactly invariant.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from d4lens.classes import CLASSES, VIEWS
from d4lens.errors import D4LensError
from d4lens.lensing import d4
from d4lens.macrofit.smooth_lens import FIT_COLUMNS
from d4lens.parallel import Ranks, together


def transform_fit(fit: Tensor, g: int) -> Tensor:
    """Fit parameters (..., 7) in the order of FIT_COLUMNS as they are for the image transformed by element `g`.

    The source position is a vector; shear and ellipticity are spin-2; the Einstein radius is a scalar.
    """
    column: dict[str, Any] = dict(zip(FIT_COLUMNS, fit.unbind(-1), strict=True))
    for first, second, turn in (
        ("source_x", "source_y", d4.transform_points),
        ("gamma1", "gamma2", d4.transform_spin2_values),
        ("e1", "e2", d4.transform_spin2_values),
    ):
        column[first], column[second] = turn(column[first], column[second], g)
    return torch.stack([column[name] for name in FIT_COLUMNS], dim=-1)


def transform_batch(batch: Mapping[str, Tensor], g: int) -> dict[str, Tensor]:
    """The batch a telescope turned by element `g` would have delivered, all that belongs to an image together.

    batch: "fit" (B, 7) turns as `transform_fit`; any entry of three axes or more is a map of scalars (B, ..., N, N)
    (counts, residual, significance, convergence) and turns as `d4.transform`; one value an image (a label) stays.
    """
    turned = {name: d4.transform(value, g) if value.ndim >= 3 else value for name, value in batch.items()}
    if "fit" in turned:
        turned["fit"] = transform_fit(turned["fit"], g)
    return turned


def exported(model: nn.Module) -> nn.Module:
    """The network to predict with: its plain-convolution form where it has `export()`, float32, channels last, in eval mode.

    The given model is left in eval mode.
    """
    # escnn keeps the filters that it expands on the way into eval mode; expanded under autograd they cannot be copied.
    with torch.no_grad():
        model.train().eval()
        export = getattr(model, "export", None)
        network = (export() if callable(export) else model).float().eval()
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def predict_logits(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], tta: bool) -> Tensor:
    """Logits (n, C) float32 on the CPU, one row per image in the batches' order.

    model: maps a batch to a dict with "logits" (B, C); it runs in eval mode (and gets its mode back), in float32 without
    autocast, on the device of its parameters. batches: dicts of tensors with equal first lengths, the last as ragged as
    it likes. tta: average over the eight elements of D4. Raises D4LensError for no images or logits not finite.
    """
    training = model.training
    model.eval()
    try:
        # on a GPU too: float32 and not TF32, and the same bits each time
        with torch.inference_mode(), torch.backends.cudnn.flags(True, deterministic=True, allow_tf32=False):
            rows = [_batch_logits(model, batch, d4.ELEMENTS if tta else range(1)) for batch in batches]
    finally:
        model.train(training)
    if not rows:
        raise D4LensError("there are no images to predict")
    result = torch.cat(rows)
    broken = (~torch.isfinite(result)).any(dim=1).nonzero()
    if len(broken):
        raise D4LensError(f"the model's prediction of image {int(broken[0])} is not finite; train it anew")
    return result


def predict_views(
    model: nn.Module, batches: Callable[[], Iterable[Mapping[str, Tensor]]]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Logits (n, C) of each of VIEWS, and how many images a second each took, reading included.

    batches: makes the batches anew for each view. The first batch is predicted once beforehand, so that no clock runs
    while the device starts up.
    """
    predict_logits(model, itertools.islice(batches(), 1), tta=False)
    logits, speed = {}, {}
    for view in VIEWS:
        start = time.perf_counter()
        logits[view] = predict_logits(model, batches(), tta=view == "tta")
        speed[view] = round(len(logits[view]) / (time.perf_counter() - start), 1)
    return logits, speed


class Images(Protocol):
    """What hands out batches of rows, as `d4lens.train.data.Lenses` does."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Sequence[int], /) -> dict[str, Tensor]: ...


@together()
def predict_shared(
    ranks: Ranks, network: nn.Module, images: Images, batch_size: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Logits (n, C) of each of VIEWS in the images' order, in each process, and images a second of all together.

    The batches are those of one process, so the logits are its too, to the bit on one kind of machine. Raises
    D4LensError for logits that are not finite.
    """
    n = len(images)
    rows = ranks.share(n, batch_size)
    starts = range(rows.start, rows.stop, batch_size)
    logits = dict.fromkeys(VIEWS, torch.empty(0, len(CLASSES)))
    speed = dict.fromkeys(VIEWS, 0.0)
    if starts:
        logits, speed = predict_views(
            network, lambda: (images[range(start, min(start + batch_size, n))] for start in starts)
        )
    speeds = ranks.total(speed.values())
    return {view: ranks.gather(rows, values, n) for view, values in logits.items()}, dict(zip(speed, speeds))


def _batch_logits(model: nn.Module, batch: Mapping[str, Tensor], elements: Iterable[int]) -> Tensor:
    device = next(model.parameters(), torch.empty(0)).device
    placed = {
        name: value.to(device, torch.float32 if value.is_floating_point() else value.dtype)
        for name, value in batch.items()
    }
    with torch.autocast(device.type, enabled=False):
        views = [model(transform_batch(placed, g))["logits"].double() for g in elements]
    return torch.stack(views).mean(dim=0).float().cpu()
