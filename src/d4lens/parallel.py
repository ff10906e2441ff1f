"""Several processes on one job, as `torchrun` starts them: who this one is, its share, and what all have found.

Without torchrun there is one process and nothing here does anything. The processes of several machines share a file
system; on a CPU they speak through gloo, and no pickle passes between them.
"""

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from d4lens.errors import D4LensError

_PATIENCE = timedelta(days=7)  # one process may work for hours while the others wait; torchrun ends all if one fails


@dataclass(frozen=True)
class Ranks:
    """This process's place. rank: of `world` processes, from 0; local_rank: of the `local_world` on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes what all have made."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        """How many machines the processes run on."""
        return self.world // self.local_world

    def device(self) -> torch.device:
        """This process's accelerator, or the CPU where there is none."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank) if self.world > 1 else torch.device("cuda")

    def shares(self, n: int, align: int = 1) -> list[slice]:
        """Each process's rows of `n`, in whole blocks of `align` but for the last; together all rows, once."""
        blocks = -(-n // align)
        ends = [min(n, align * (blocks * rank // self.world)) for rank in range(self.world + 1)]
        return [slice(first, last) for first, last in itertools.pairwise(ends)]

    def share(self, n: int, align: int = 1) -> slice:
        """This process's of `shares`."""
        return self.shares(n, align)[self.rank]

    def part(self, path: Path) -> Path:
        """Where this process puts its part of `path`, a sibling; `parts` names all of them."""
        return self.parts(path)[self.rank]

    def parts(self, path: Path) -> list[Path]:
        """Beside `path`, one file for each process to write its share to, in the order of their ranks."""
        return [path.with_name(f"{path.stem}.{rank + 1}-of-{self.world}{path.suffix}") for rank in range(self.world)]

    def wait(self) -> None:
        """Until every process has come this far."""
        if self.world > 1:
            dist.barrier()

    def gather(self, rows: slice, values: Tensor, n: int) -> Tensor:
        """All processes' rows (n, ...) from each one's `values` of its `rows`, exact to the bit, on the CPU of each.

        Raises D4LensError unless every row came once.
        """
        if self.world == 1:
            return values
        whole = torch.zeros((n, *values.shape[1:]), dtype=values.dtype)
        whole[rows] = values.cpu()
        times = torch.zeros(n, dtype=torch.int64)
        times[rows] = 1
        for tensor in (whole, times):  # zeros are added to a row's one value
            dist.all_reduce(tensor)
        if not bool((times == 1).all()):
            raise D4LensError(f"row {int((times != 1).nonzero()[0])} came from {int(times[times != 1][0])} processes")
        return whole

    def total(self, values: Iterable[float]) -> list[float]:
        """Sums over the processes."""
        sums = torch.tensor(list(values), dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(sums)
        return [float(value) for value in sums]


def ranks() -> Ranks:
    """This process's place by torchrun's environment, and its connection to the others; alone without torchrun.

    Raises D4LensError where the machines run unequal numbers of processes.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        return Ranks()
    found = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    if found.world % found.local_world:
        raise D4LensError(
            f"{found.world} processes do not part into {found.local_world} a machine; start as many on each"
        )
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    return found
