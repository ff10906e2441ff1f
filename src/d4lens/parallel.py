"""Several processes on one job: their ranks and shares, what all have found, and one end for all of them.

`torchrun` starts them, or any launcher that sets `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`; without these there is
one process, which has all the work and waits for no other. The processes of several machines share a file system; on a CPU they speak
through gloo, and no pickle passes between them.
"""

import contextlib
import itertools
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from d4lens.errors import D4LensError

_PATIENCE = timedelta(days=7)  # one process may work for hours while the others wait; `together` ends all if one fails
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SECONDS_TO_HEAR = 10.0  # of a process that is gone, once a collective has failed
_SECONDS_TO_LEAVE = 20.0  # for a process that has heard of it and may wait on a GPU for ever
_WELL = -1


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this one is.

    Attributes
    ----------
    rank : int
        This process, of `world` counted from 0.
    world : int
        Processes in all.
    local_rank : int
        This process, of the `local_world` on this machine.
    local_world : int
        Processes on each machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_main(self) -> bool:  # numpydoc ignore=RT01
        """Whether this is the process that writes what all have made."""
        return self.rank == 0

    @property
    def machines(self) -> int:  # numpydoc ignore=RT01
        """How many machines the processes run on."""
        return self.world // self.local_world

    def device(self) -> torch.device:
        """Return the accelerator of this process, or the CPU where there is none.

        Returns
        -------
        torch.device
            The device.
        """
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank) if self.world > 1 else torch.device("cuda")

    def shares(self, n: int, align: int = 1) -> list[slice]:
        """Divide `n` rows among the processes, each row once.

        Parameters
        ----------
        n : int
            Rows.
        align : int
            Rows of a block; only the last process may get part of one.

        Returns
        -------
        list of slice
            The rows of each process, in the order of their ranks.
        """
        blocks = -(-n // align)
        ends = [min(n, align * (blocks * rank // self.world)) for rank in range(self.world + 1)]
        return [slice(first, last) for first, last in itertools.pairwise(ends)]

    def share(self, n: int, align: int = 1) -> slice:
        """Return the rows of this process, of `shares`.

        Parameters
        ----------
        n : int
            Number of rows.
        align : int
            As for `shares`.

        Returns
        -------
        slice
            The rows.
        """
        return self.shares(n, align)[self.rank]

    def part(self, path: Path) -> Path:
        """Return the sibling of `path` that this process writes, of `parts`.

        Parameters
        ----------
        path : Path
            The file that all share.

        Returns
        -------
        Path
            The sibling.
        """
        return self.parts(path)[self.rank]

    def parts(self, path: Path) -> list[Path]:
        """Name one sibling of `path` for each process to write its share to, in the order of their ranks.

        Parameters
        ----------
        path : Path
            The file that all share.

        Returns
        -------
        list of Path
            One for each process.
        """
        return [path.with_name(f"{path.stem}.{rank + 1}-of-{self.world}{path.suffix}") for rank in range(self.world)]

    def wait(self) -> None:
        """Wait until every process has come this far."""
        if self.world > 1:
            dist.barrier()

    def gather(self, rows: slice, values: Tensor, n: int) -> Tensor:
        """Collect the rows of all processes, exact to the bit.

        Parameters
        ----------
        rows : slice
            The rows of this process, of `n`.
        values : Tensor
            Their values, (len of `rows`, ...).
        n : int
            Rows in all.

        Returns
        -------
        Tensor
            All rows, (n, ...), on the CPU of each process; alone, `values` itself.

        Raises
        ------
        D4LensError
            Unless every row came once.
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
        """Sum each of the values over the processes.

        Parameters
        ----------
        values : iterable of float
            This process's.

        Returns
        -------
        list of float
            Their sums, in the same order.
        """
        sums = torch.tensor(list(values), dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(sums)
        return [float(value) for value in sums]


def ranks() -> Ranks:
    """Read from the launcher's environment which process this is, and connect it to the others.

    Returns
    -------
    Ranks
        One process of one, where no launcher set `RANK`.

    Raises
    ------
    D4LensError
        Where the environment sets a rank but no address, or where the machines run unequal numbers of processes.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    if missing := [name for name in _LAUNCHED if name not in os.environ]:
        raise D4LensError(f"RANK is set without {' and '.join(missing)}; set all of {', '.join(_LAUNCHED)}, or none")
    os.environ.setdefault("LOCAL_RANK", "0")  # as one process a machine, where the launcher does not say
    os.environ.setdefault("LOCAL_WORLD_SIZE", "1")
    found = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    if found.world % found.local_world:
        raise D4LensError(
            f"{found.world} processes do not part into {found.local_world} a machine; start as many on each"
        )
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    return found


@contextlib.contextmanager
def together() -> Iterator[None]:
    """End all processes within a minute of one that is killed or leaves by an exception; also a decorator.

    Collectives belong inside: torchrun sees a dead process, other launchers do not, and NCCL waits for it. At the end the
    processes wait for each other. Alone, nothing happens.

    Yields
    ------
    None
        Once, for a `with`.

    Raises
    ------
    D4LensError
        In the others, naming the process that is gone.
    """
    own_ranks = ranks()
    if own_ranks.world == 1:
        yield
        return
    watch = _Watch(own_ranks)
    try:
        yield
        watch.leave()
    except BaseException as error:
        # A process reports its own error. A failed collective is the fault of another, which may yet report.
        own = isinstance(error, D4LensError | KeyboardInterrupt | SystemExit)
        watch.heard.wait(0.0 if own else _SECONDS_TO_HEAR)
        watch.left.set()
        if watch.gone is None:
            watch.say(own_ranks.rank)
            raise
        raise D4LensError(watch.sentence()) from None


class _Watch:
    """Each process listens to the main one, that one to all: to _WELL, or to the rank of one that is gone."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.gone: int | None = None
        self.heard, self.left = threading.Event(), threading.Event()
        self._said: queue.Queue[tuple[int, int]] = queue.Queue()
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._peers = range(1, ranks.world) if ranks.is_main else range(1)
        for peer in self._peers:
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()
        threading.Thread(target=self._judge, daemon=True).start()

    def sentence(self) -> str:
        return (
            f"process {self.gone} of {self.ranks.world} is gone (processes count from 0), and process {self.ranks.rank} "
            "ends with it; the same command goes on from what is finished"
        )

    def leave(self) -> None:
        """Wait until all processes have ended well. Raises D4LensError where one has not."""
        if not self.ranks.is_main:
            self.say(_WELL)
        self.heard.wait()
        if self.gone is not None:
            raise D4LensError(self.sentence())
        if self.ranks.is_main:
            self.say(_WELL)

    def say(self, word: int) -> None:
        for peer in self._peers:
            with contextlib.suppress(RuntimeError):  # that one is gone, too
                dist.send(torch.tensor([word]), peer, self._group)

    def _listen(self, peer: int) -> None:
        word = torch.empty(1, dtype=torch.int64)
        try:
            dist.recv(word, peer, self._group)
        except RuntimeError:
            word.fill_(peer)
        self._said.put((peer, int(word)))

    def _judge(self) -> None:
        for _ in self._peers:
            _, word = self._said.get()
            if word != _WELL:
                break
        else:
            self.heard.set()
            return
        self.gone = word
        self.heard.set()
        if self.ranks.is_main:
            self.say(word)
        if not self.left.wait(_SECONDS_TO_LEAVE):
            print(self.sentence(), file=sys.stderr, flush=True)
            os._exit(1)
