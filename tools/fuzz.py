"""Damaged and hostile image files by the hundred thousand: each must be read or refused in one sentence.

    python tools/fuzz.py --inputs 100000 --seed 0

Mutations of real files of every format that is read (.npy, .npz, .fits, plain and compressed, .png, .tif, and the published
tree as a zip), and .npy headers that hypothesis makes up. Each input goes the whole way to photon counts. Anything but
D4LensError, more than `--megabytes` of memory beyond what the libraries take, or more than ten seconds on one input is a
fault: its file is kept in `--keep`, and the exit status is 1.
"""

import argparse
import contextlib
import io
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from d4lens.classes import CLASSES
from d4lens.data.archive import Archive, Limits, zip_member
from d4lens.data.images import MIN_SIDE, Instrument, Raw, find, prepare
from d4lens.data.images.formats import reader_of
from d4lens.errors import D4LensError
from d4lens.observation import Observation
from d4lens.progress import Meter

SECONDS = 10
SKY = 10.0
ODD = [0, 1, 0x7F, 0x80, 0xFF]
WORDS = [0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]
NUMBERS = [b"-1", b"0", b"99999999999999999999", b"1e308", b"nan", b"2147483648", b"(1,)", b"'"]
LIMITS = Limits(max_gigabytes=0.01)


def corpus(folder: Path, real: Path | None) -> dict[str, list[bytes]]:
    """Whole files by suffix: images of a ring in every format, and the genuine images of `real` (an .npy each)."""
    from astropy.io import fits
    from PIL import Image

    generator = np.random.default_rng(0)
    x = np.arange(24) - 11.5
    ring = 300 * np.exp(-((np.hypot(x[:, None], x) - 6) ** 2) / 4)
    counts = generator.poisson(ring + SKY)
    scaled = (counts - counts.min()) / np.ptp(counts)
    files: dict[str, list[bytes]] = {}

    def keep(suffix: str, write: Callable[[io.BytesIO], object]) -> None:
        stream = io.BytesIO()
        write(stream)
        files.setdefault(suffix, []).append(stream.getvalue())

    for array in (scaled[None], scaled.astype(">f4"), np.asfortranarray(counts), counts.astype(np.uint16)):
        keep(".npy", lambda stream, array=array: np.save(stream, array))
    files[".npy"] += [path.read_bytes() for path in sorted(real.glob("*/*.npy"))[:3]] if real else []
    keep(".npz", lambda stream: np.savez(stream, image=scaled))
    keep(".npz", lambda stream: np.savez_compressed(stream, a=scaled, sci=counts))
    header = fits.Header(
        {"CTYPE1": "RA---TAN", "CD1_1": -1e-5, "CD2_2": 1e-5, "EXPTIME": 900.0, "BUNIT": "electrons/s"}
    )
    keep(".fits", fits.PrimaryHDU(scaled.astype(np.float32), header).writeto)
    keep(".fits", fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(counts.astype(np.int16), header, "SCI")]).writeto)
    keep(".fits", fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(counts.astype(np.int32))]).writeto)
    for suffix, kind in ((".png", "PNG"), (".tif", "TIFF")):
        for array in (counts.clip(0, 255).astype(np.uint8), counts.astype(np.uint16)):
            keep(suffix, lambda stream, a=array, kind=kind: Image.fromarray(a).save(stream, kind))
    path = folder / "tree.zip"
    with zipfile.ZipFile(path, "w") as writer:
        for split in ("train", "val"):
            for number, name in enumerate(CLASSES):
                writer.writestr(zip_member(f"dataset/{split}/{name}/{number}.npy"), files[".npy"][number])
        writer.writestr(zip_member("__MACOSX/dataset/._x"), b"fork")
    files[".zip"] = [path.read_bytes()]
    return files


def mutate(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """A few random damages: bits, bytes, words, numbers in text, pieces cut, doubled, moved or taken from another file."""
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        if not damaged:
            break
        # Headers and directories are where a file lies best: half of all damage goes to the first and last 256 bytes.
        size = len(damaged)
        place = draw.choice(
            (draw.randrange(size), draw.randrange(min(256, size)), size - 1 - draw.randrange(min(256, size)))
        )
        kind = draw.randrange(8)
        if kind == 0:
            damaged[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            damaged[place] = draw.choice(ODD)
        elif kind == 2:
            form = draw.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
            word = struct.pack(form, draw.choice(WORDS) & (256 ** struct.calcsize(form) - 1))
            damaged[place : place + len(word)] = word
        elif kind == 3:
            number = draw.choice(NUMBERS)
            damaged[place : place + len(number)] = number
        elif kind == 4:
            del damaged[place : place + draw.choice((1, 2, 16, 512))]
        elif kind == 5:
            del damaged[place:]
        elif kind == 6:
            piece = damaged[place : place + draw.choice((1, 8, 80, 2880))]
            at = draw.randrange(size)
            damaged[at:at] = piece
        else:
            other = draw.choice(others)
            at = draw.randrange(len(other))
            piece = other[at : at + draw.choice((4, 64, 1024))]
            damaged[place : place + len(piece)] = piece
    return bytes(damaged)


def headers(n: int, seed_: int) -> Iterator[bytes]:
    """.npy files whose headers are well formed and say anything: types, shapes that fit the bytes or do not, versions."""
    side = st.one_of(st.integers(-2, 12), st.sampled_from([True, None, 2**31, 2**63, 10**30, 1.5]))
    types = st.one_of(
        st.sampled_from(["<f8", ">f4", "|u1", "<i8", "<f2", "|O", "<U4", "<c16", "<M8[s]", "|V8", "<f16", "|b1", ""]),
        st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["<f8", "|O"])), max_size=3),
    )
    made: list[bytes] = []

    @seed(seed_)
    @settings(max_examples=n, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        types, st.booleans() | st.none(), st.lists(side, max_size=40), st.integers(0, 4096), st.sampled_from([1, 2, 3])
    )
    def make(descr: object, fortran: object, shape: list[object], size: int, version: int) -> None:
        text = repr({"descr": descr, "fortran_order": fortran, "shape": tuple(shape)}).encode() + b"\n"
        length = len(text).to_bytes(2 if version == 1 else 4, "little")
        made.append(b"\x93NUMPY" + bytes([version, 0]) + length + text + bytes(range(256)) * (size // 256))

    make()
    return iter(made)


def use(suffix: str, data: bytes, path: Path) -> None:
    """Take a file the whole way, as `predict` and the stages do; D4LensError if it is refused."""
    if suffix == ".zip":
        path.write_bytes(data)
        with contextlib.suppress(D4LensError), Archive(path, LIMITS) as archive:
            for entry in archive.entries:
                archive.read(entry.member)
        for source in find([path], LIMITS):
            with contextlib.suppress(D4LensError):
                prepared(Raw(source.load()))
        return
    reader = reader_of(f"x{suffix}")
    assert reader is not None
    prepared(reader(data, f"x{suffix}", None))


def prepared(raw: Raw) -> None:
    """Take an image to a grid of its own pixels."""
    prepare(raw, Observation(max(min(raw.pixels.shape), MIN_SIDE), 0.1, 0.08625, SKY), Instrument(pixel_scale=0.1))


class TooSlow(Exception):
    """An input took longer than SECONDS."""


def _alarm(*_: object) -> None:
    raise TooSlow


def run(n: int, seed_: int, folder: Path, keep: Path, real: Path | None = None) -> tuple[Counter[str], list[str]]:
    """Read `n` inputs; returns how many of each format were `read` and `refused`, and the faults, a line each."""
    files, draw = corpus(folder, real), random.Random(seed_)
    suffixes = [".npy", ".zip", ".npz", ".fits", ".png", ".tif"]
    weights = [30, 15, 15, 10, 10, 10]
    made = headers(max(1, n // 10), seed_)
    everything = [data for kind in files.values() for data in kind]
    tally: Counter[str] = Counter()
    faults: list[str] = []
    signal.signal(signal.SIGALRM, _alarm)
    with Meter(n, "fuzz") as meter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(n):
            data = next(made, None)
            if data is not None:
                suffix = ".npy"
            else:
                suffix = draw.choices(suffixes, weights)[0]
                data = mutate(draw.choice(files[suffix]), everything, draw)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                use(suffix, data, folder / "input.zip")
                tally[f"{suffix} read"] += 1
            except D4LensError as error:
                tally[f"{suffix} refused"] += 1
                if "\n" in str(error):
                    faults.append(f"input {number}: more than one line: {error}")
            except Exception as error:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{number}{suffix}").write_bytes(data)
                place = traceback.extract_tb(error.__traceback__)[-1]
                faults.append(f"{number}{suffix}: {type(error).__name__}: {error} ({place.filename}:{place.lineno})")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            meter.update()
    return tally, faults


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--megabytes", type=int, default=1000, help="memory an input may take (default: 1000)")
    parser.add_argument("--real", type=Path, help="a folder CLASS/N.npy of genuine images, for the corpus")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where inputs that fail go")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + options.megabytes * 10**6,) * 2)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        tally, faults = run(options.inputs, options.seed, Path(folder), options.keep, options.real)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    for name in sorted(tally):
        print(f"{name}: {tally[name]}")
    print(
        f"{options.inputs} inputs, {len(faults)} faults, {peak:.0f} MB at most, {time.process_time() - started:.0f} s of CPU"
    )
    sys.exit("\n".join(faults[:50]) or 0)


if __name__ == "__main__":
    main()
