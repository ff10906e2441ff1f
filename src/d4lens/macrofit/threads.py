"""Images side by side on the CPU's cores: each thread computes alone, so that an image's bytes never depend on them."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> list[Result]:
    """Do work on every item, on threads with one of torch's each; torch's own number is restored.

    Numbers below 1e-38, such as the light of a source far away, count as zero there: some processors multiply a matrix that
    holds them eight times slower.

    Parameters
    ----------
    work : callable
        Of one item.
    items : iterable
        The items.
    threads : int
        How many at once.

    Returns
    -------
    list
        The results in the items' order.
    """
    had = torch.get_num_threads()

    def alone(item: Item) -> Result:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)  # of this thread only
        return work(item)

    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(alone, items))
    finally:
        torch.set_num_threads(had)
