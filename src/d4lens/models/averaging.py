"""Predictions, plain or averaged over the eight symmetries of the square (test-time augmentation).

The average is of logits: up to a constant per image, of log-probabilities, whose softmax is the normalised geometric
mean of the eight predictions. A D4-invariant network's logits are equal in all eight views, so averaging changes it by
rounding only, and any other network becomes exactly invariant.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from d4lens.classes import CLASSES, VIEWS
from d4lens.errors import D4LensError
from d4lens.lensing import d4
from d4lens.models.batch import LensBatch
from d4lens.parallel import Ranks, together


def exported(network: nn.Module) -> nn.Module:
    """Make the network to predict with: float32, channels last, in eval mode.

    It is of plain convolutions where the network has `export()`. The given network is left in eval mode.

    Parameters
    ----------
    network : nn.Module
        The trained network.

    Returns
    -------
    nn.Module
        The network to predict with; the network itself where it has no `export()`.
    """
    # escnn keeps the filters that it expands on the way into eval mode; expanded under autograd they cannot be copied.
    with torch.no_grad():
        network.train().eval()
        export = getattr(network, "export", None)
        to_predict: nn.Module = (export() if callable(export) else network).float().eval()
        to_predict.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return to_predict


def predict_logits(network: nn.Module, batches: Iterable[LensBatch], tta: bool) -> Tensor:
    """Predict images batch by batch.

    Parameters
    ----------
    network : nn.Module
        Maps a batch to a dictionary with "logits" (B, C). It runs in eval mode (and gets its mode back), in float32
        without autocast, on the device of its parameters.
    batches : iterable of LensBatch
        Of any lengths.
    tta : bool
        Whether to average the logits over the eight elements of D4.

    Returns
    -------
    Tensor
        Logits (n, C) float32 on the CPU, one row per image in the batches' order.

    Raises
    ------
    D4LensError
        For no images, or logits that are not finite.
    """
    training = network.training
    network.eval()
    try:
        # on a GPU too: float32 and not TF32, and the same bits each time
        with torch.inference_mode(), torch.backends.cudnn.flags(True, deterministic=True, allow_tf32=False):
            rows = [_batch_logits(network, batch, d4.ELEMENTS if tta else range(1)) for batch in batches]
    finally:
        network.train(training)
    if not rows:
        raise D4LensError("there are no images to predict")
    result = torch.cat(rows)
    broken = (~torch.isfinite(result)).any(dim=1).nonzero()
    if len(broken):
        raise D4LensError(f"the network's prediction of image {int(broken[0])} is not finite; train it anew")
    return result


def predict_views(
    network: nn.Module, batches: Callable[[], Iterable[LensBatch]]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Predict images in each of VIEWS.

    The first batch is predicted once beforehand, so that no clock runs while the device starts up.

    Parameters
    ----------
    network : nn.Module
        As in `predict_logits`.
    batches : callable
        Makes the batches anew for each view.

    Returns
    -------
    dict of Tensor
        Logits (n, C) by view.
    dict of float
        Images a second by view, reading included.

    Raises
    ------
    D4LensError
        As `predict_logits`.
    """
    predict_logits(network, itertools.islice(batches(), 1), tta=False)
    logits, speed = {}, {}
    for view in VIEWS:
        start = time.perf_counter()
        logits[view] = predict_logits(network, batches(), tta=view == "tta")
        speed[view] = round(len(logits[view]) / (time.perf_counter() - start), 1)
    return logits, speed


class Images(Protocol):
    """What hands out batches of rows, as `d4lens.train.lenses.Lenses` does."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Sequence[int], /) -> LensBatch: ...


@together()
def predict_shared(
    ranks: Ranks, network: nn.Module, images: Images, batch_size: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Predict images in each of VIEWS with all processes together.

    The batches are those of one process, so on one kind of machine the logits equal its logits to the bit.

    Parameters
    ----------
    ranks : Ranks
        The processes, as `together` hands them in.
    network : nn.Module
        As in `predict_logits`.
    images : Images
        Every process's own view of all images.
    batch_size : int
        Images a batch.

    Returns
    -------
    dict of Tensor
        In each process, logits (n, C) by view in the images' order.
    dict of float
        Images a second of all processes together, by view.

    Raises
    ------
    D4LensError
        For logits that are not finite.
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


def _batch_logits(network: nn.Module, batch: LensBatch, elements: Iterable[int]) -> Tensor:
    device = next(network.parameters(), torch.empty(0)).device
    placed = batch.to(device, torch.float32)
    with torch.autocast(device.type, enabled=False):
        views = [network(placed.turned(g))["logits"].double() for g in elements]
    return torch.stack(views).mean(dim=0).float().cpu()
