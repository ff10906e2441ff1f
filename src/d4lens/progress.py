"""How far long work has come: a bar on a terminal, now and then a plain line anywhere else (logs, CI)."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, TypeVar

from tqdm import tqdm

T = TypeVar("T")
SHARE = 0.1
MIN_SECONDS, MAX_SECONDS = 1.0, 15.0


class Meter:
    """Count finished work on standard error; a context manager.

    On a terminal it is a tqdm bar. Elsewhere, where tqdm would write carriage returns, it is a line for each tenth of a known
    total, at most one a second and at least one in 15 s while work goes on, and one at the end.

    Parameters
    ----------
    total : int or None
        How much is to be done; None if unknown.
    description : str
        What is done.
    unit : str
        Of the count; "B" shows megabytes.
    stream : file, optional
        Where to write instead of standard error.
    """

    def __init__(self, total: int | None, description: str, unit: str = "", stream: IO[str] | None = None) -> None:
        self.total = total
        self.done = 0
        self.description = description
        self.unit = unit
        self.stream = stream if stream is not None else sys.stderr
        self.start = self.last_time = time.monotonic()
        self.last_done = -1
        self.bar = None
        if self.stream.isatty():
            self.bar = tqdm(
                total=total, desc=description, unit=unit or "it", unit_scale=unit == "B", file=self.stream, leave=True
            )

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None and self.done != self.last_done:
            self._print()

    def to(self, done: int, total: int | None = None) -> None:
        """Set how much is done, and the total where it becomes known only now.

        Parameters
        ----------
        done : int
            Work done, of all.
        total : int, optional
            All the work.
        """
        if total is not None:
            self.total = total
        step, self.done = done - self.done, done
        if self.bar is not None:
            self.bar.total = self.total
            self.bar.update(step)
            return
        waited = time.monotonic() - self.last_time
        tenth = self.total is not None and done - max(self.last_done, 0) >= SHARE * self.total
        if waited >= MAX_SECONDS or (tenth and waited >= MIN_SECONDS):
            self._print()

    def update(self, step: int = 1) -> None:
        """Add finished work.

        Parameters
        ----------
        step : int
            How much was finished.
        """
        self.to(self.done + step)

    def _print(self) -> None:
        scale, unit = (1e6, " MB") if self.unit == "B" else (1, f" {self.unit}" if self.unit else "")
        of = f"/{self.total / scale:.0f}" if self.total is not None else ""
        seconds = time.monotonic() - self.start
        with suppress(OSError):  # a full disk behind the stream is no reason to lose the work
            print(
                f"{self.description}: {self.done / scale:.0f}{of}{unit}, {seconds:.0f} s", file=self.stream, flush=True
            )
        self.last_time, self.last_done = time.monotonic(), self.done


def with_progress(iterable: Iterable[T], total: int | None = None, desc: str = "") -> Iterator[T]:
    """Iterate, showing progress.

    Parameters
    ----------
    iterable : iterable
        What to iterate over.
    total : int, optional
        Its length; by default as `len` gives it, where it does.
    desc : str
        What is done.

    Yields
    ------
    object
        The items, unchanged.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    with Meter(total, desc) as meter:
        for item in iterable:
            yield item
            meter.update()
