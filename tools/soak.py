"""`predict` over a large archive of which one image in a hundred is corrupt: memory flat, every image answered or reported.

    python tools/soak.py --images 20000 --seed 0

Simulates the archive, damages every hundredth image in turn of the kinds below, predicts, and checks the table row by row.
Prints images a second and memory; exits non-zero at the first thing that is not as it should be.
"""

import argparse
import io
import json
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d4lens.data import images
from d4lens.data.archive import zip_member
from d4lens.inference.pipeline import classify, load_classifier
from d4lens.simulator import draw, preset, render
from d4lens.table_files import PROBABILITIES

EVERY = 100  # of so many images one is corrupt
_CHUNK = 200
_FLAT_MEGABYTES = 150.0


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def corrupt(image: np.ndarray, kind: int) -> bytes:
    """An image (1, N, N) as a file that no image can be read from, in one of eight ways."""
    whole = npy(image)
    return (
        whole[: len(whole) // 2],
        npy(np.full_like(image, np.nan)),
        b"",
        npy(image[:, :-1]),
        npy(np.zeros_like(image)),
        npy(image.astype(complex)),
        b"<html>quota exceeded</html>",
        whole.replace(b"(1, ", b"(9, "),
    )[kind % 8]


def write(path: Path, n: int, seed: int) -> set[str]:
    """An archive of `n` simulated images as published; the names of those that are corrupt."""
    simulated, bad = preset("deeplense"), set()
    with zipfile.ZipFile(path, "w") as writer:
        for first in range(0, n, _CHUNK):
            numbers = range(first, min(first + _CHUNK, n))
            for number, counts in zip(numbers, render(draw(simulated, seed, numbers), simulated).numpy(), strict=True):
                image = ((counts - counts.min()) / np.ptp(counts))[None]
                name = f"{number + 1}.npy"
                if number % EVERY == EVERY // 2:
                    bad.add(name)
                    writer.writestr(zip_member(name), corrupt(image, number // EVERY))
                else:
                    writer.writestr(zip_member(name), npy(image))
    return bad


@dataclass
class Memory:
    """Resident megabytes of this process, read each second by a thread."""

    samples: list[float]
    stop: threading.Event

    def watch(self) -> None:
        while not self.stop.wait(1.0):
            self.samples.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6)


def soak(n: int, seed: int, folder: Path) -> dict[str, float]:
    """Write, predict, check; the figures. Raises AssertionError naming what is not as it should be."""
    bad = write(folder / "soak.zip", n, seed)
    memory = Memory([], threading.Event())
    watcher = threading.Thread(target=memory.watch, daemon=True)
    watcher.start()
    began, spent = time.monotonic(), time.process_time()
    answer = classify(list(images.find([folder / "soak.zip"])), load_classifier())
    seconds, spent = time.monotonic() - began, time.process_time() - spent
    memory.stop.set()
    watcher.join()

    table = answer.table.set_index(answer.table["path"].str.rsplit(": ", n=1).str[-1])
    assert len(table) == n, f"{len(table)} rows of {n} images"
    assert table.index.is_unique, "an image has two rows"
    failed = set(table.index[table["flag"].str.startswith("failed: ")])
    assert failed == bad, f"reported {sorted(failed - bad)[:5]} without reason, not reported {sorted(bad - failed)[:5]}"
    assert {path.rsplit(": ", 1)[-1] for path, _ in answer.failures} == bad
    probabilities = table.loc[~table.index.isin(bad), PROBABILITIES].to_numpy()
    assert np.isfinite(probabilities).all(), "a good image without probabilities"
    assert np.abs(probabilities.sum(1) - 1).max() < 1e-5
    half = max(1, len(memory.samples) // 2)
    early, late = (max(part, default=0.0) for part in (memory.samples[:half], memory.samples[half:]))
    assert late - early < _FLAT_MEGABYTES, f"memory grew from {early:.0f} to {late:.0f} MB"
    return {
        "images": n,
        "corrupt": len(bad),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(spent, 1),
        "images_per_second": round(n / seconds, 2),
        "megabytes_first_half": round(early),
        "megabytes_second_half": round(late),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="soak.") as folder:
            print(json.dumps(soak(options.images, options.seed, Path(folder)), indent=2))
    except AssertionError as error:
        sys.exit(f"soak: {error}")


if __name__ == "__main__":
    main()
