"""A split predicted by several processes: each image by exactly one of them."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from d4lens.classes import CLASSES
from d4lens.models.averaging import predict_views
from d4lens.parallel import Ranks, together
from d4lens.results.tables import VIEWS


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
