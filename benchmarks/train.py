"""Speed of training, of loading and of the exported network, against the plain way, in one run.

    python benchmarks/train.py [--rounds 5] [--threads 1] [--compile] [--keep-memory] [--out FILE.json]

The plain way: escnn's R2Conv and InnerBatchNorm as its documentation has them, float32, eager, channels first; one .npy file
an image behind torch's DataLoader. Both sides have the same architecture, weights and images and take turns (A B A B ...);
a ratio is that of medians. What is measured is the processor time of this process, which other load on the machine disturbs
less than the clock.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.utils.data import DataLoader, Dataset

from d4lens import models
from d4lens.allocator import keep_freed_memory
from d4lens.files import write_json
from d4lens.models.averaging import exported
from d4lens.models.batch import LensBatch
from d4lens.models.equivariant import EquivariantConv, EquivariantLayers, _type, enn
from d4lens.models.fields import FieldNorm
from d4lens.models.pinn import D4LensPINN
from d4lens.models.unet import UNet
from d4lens.observation import Observation
from d4lens.params import LossWeights
from d4lens.train import losses
from d4lens.train.lenses import EpochBatches, Lenses

OBSERVATION = Observation(76, 0.1, 0.08625, 40.0)
BATCH = 32
N_FILES = 512


class PlainConv(nn.Module):
    """escnn's convolution with the weights of ours."""

    def __init__(self, ours: EquivariantConv) -> None:
        super().__init__()
        conv = ours.conv
        size, padding, bias = conv.kernel_size, conv.padding, conv.bias is not None
        self.conv = enn.R2Conv(conv.in_type, conv.out_type, size, padding=padding, bias=bias, initialize=False)
        self.conv.train().load_state_dict(conv.train().state_dict())  # of one mode: the keys differ

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(enn.GeometricTensor(x, self.conv.in_type)).tensor


class PlainNorm(nn.Module):
    """escnn's batch normalisation with the weights of ours."""

    def __init__(self, ours: FieldNorm) -> None:
        super().__init__()
        self.norm = enn.InnerBatchNorm(_type(0, len(ours.weight)), eps=ours.eps, momentum=ours.momentum)
        (inner,) = (module for module in self.norm.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        inner.load_state_dict(ours.state_dict(), strict=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(enn.GeometricTensor(x, self.norm.in_type)).tensor


def plain(net: nn.Module) -> nn.Module:
    """The network with escnn's own layers in place of ours; it is changed, not copied."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, EquivariantConv):
                setattr(parent, name, PlainConv(child))
            elif isinstance(child, FieldNorm):
                setattr(parent, name, PlainNorm(child))
    return net


def channels_first(work: Callable[[], object]) -> Callable[[], object]:
    """`work` in torch's default layout, where our modules ask for the other one themselves."""

    def run() -> object:
        with mock.patch.object(torch, "channels_last", torch.contiguous_format):
            return work()

    return run


def interleaved(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor seconds of each side, all in turn in each round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, work in sides.items():
            start = time.process_time()
            work()
            if turn:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def images(n: int) -> LensBatch:
    generator = torch.Generator().manual_seed(1)
    side = OBSERVATION.n_pixels
    maps = {name: torch.randn(n, side, side, generator=generator) for name in ("residual", "significance")}
    fit = torch.tensor([1.2, 0.02, 0.01, 0.05, -0.05, 0.1, 0.0]).repeat(n, 1)
    counts = torch.poisson(torch.full((n, side, side), 60.0), generator=generator)
    return LensBatch(counts, **maps, fit=fit, label=torch.arange(n) % 3, kappa=0.01 * maps["residual"])


def unet_step(net: nn.Module, bf16: bool, channels_last: bool) -> Callable[[], object]:
    """One forward and backward pass of a U-Net of the default widths and one optimiser step."""
    batch = images(BATCH)
    x = torch.stack([batch.residual, batch.significance], 1)
    if channels_last:
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    gradients: list[Tensor] = []

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = net(x)
        if not gradients:  # given, so that no loss of ours is timed with the network
            gradients.extend(1e-3 * torch.ones_like(output) for output in outputs)
        torch.autograd.backward(outputs, gradients)
        optimizer.step()
        optimizer.zero_grad()

    return step


def whole_step(net: nn.Module, bf16: bool, channels_last: bool) -> Callable[[], object]:
    """One training step of d4lenspinn with all its losses."""
    batch = images(BATCH)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    weights = dict.fromkeys(LossWeights.model_fields, 1e-3)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = net(batch)
            terms = {"classification": nn.functional.cross_entropy(out["logits"], batch.label)}
        terms |= losses.physics(D4LensPINN.losses, weights, out, batch, OBSERVATION)
        torch.stack([weights.get(name, 1.0) * value for name, value in terms.items()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def fresh(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "unet":
        return UNet(EquivariantLayers(), OBSERVATION.n_pixels, 2, 2)
    return models.build("d4lenspinn", OBSERVATION)


def steps(kind: str, rounds: int, compiled: bool) -> dict[str, object]:
    """Milliseconds an image of the plain way, of ours, and of ours with one thing changed."""
    make = unet_step if kind == "unet" else whole_step
    sides = {
        "plain": channels_first(make(plain(fresh(kind)), False, False)),
        "ours": make(fresh(kind), True, True),
        "ours_float32": make(fresh(kind), False, True),
        "ours_channels_first": channels_first(make(fresh(kind), True, False)),
        "ours_float32_channels_first": channels_first(make(fresh(kind), False, False)),
    }
    if compiled:
        sides["ours_compiled"] = make(torch.compile(fresh(kind)), True, True)
    seconds = interleaved(sides, rounds)
    return {
        "ms_per_image": {name: value / BATCH * 1e3 for name, value in seconds.items()},
        "times_faster_than_plain": seconds["plain"] / seconds["ours"],
    }


def inference(rounds: int, compiled: bool) -> dict[str, object]:
    """The exported d4lenspinn against the eager escnn network, both in eval mode and float32, and their difference."""
    batch = images(BATCH)
    net = fresh("whole").eval()
    ours = exported(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    eager = plain(net.train()).eval()
    unexpanded = plain(fresh("whole"))
    for module in unexpanded.modules():  # as a network that was never told `eval()`, but for its moments
        module.training = isinstance(module, enn.R2Conv)

    def run(module: nn.Module) -> Tensor:
        with torch.no_grad():
            return module(batch)["logits"]

    with torch.no_grad():
        difference = (run(ours) - run(eager)).abs().max().item()
    sides: dict[str, Callable[[], object]] = {
        "eager": channels_first(lambda: run(eager)),
        "exported": lambda: run(ours),
        "filters_expanded_anew": channels_first(lambda: run(unexpanded)),
    }
    if compiled:
        inductor.freezing = True  # weights as constants: laid out and fused once
        fused = torch.compile(ours)
        sides["exported_compiled"] = lambda: run(fused)
    seconds = interleaved(sides, rounds)
    return {
        "ms_per_image": {name: value / BATCH * 1e3 for name, value in seconds.items()},
        "largest_difference_of_logits": difference,
        "times_faster_than_eager": seconds["eager"] / seconds["exported"],
    }


class Files(Dataset):  # type: ignore[type-arg]
    """One published image a file: float64 (1, 150, 150)."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npy"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(np.load(self.paths[index]).astype(np.float32)), index % 3


def loading(rounds: int) -> dict[str, object]:
    """An epoch of images of 150 px from warm files: one file each, and one memory map of photon counts."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = rng.poisson(60, (N_FILES, 150, 150)).astype(np.uint16)
        for i, image in enumerate(counts):
            np.save(folder / f"{i:05d}.npy", (image / image.max())[None])
        np.save(folder / "all.counts", counts)
        mapped = np.load(folder / "all.counts.npy", mmap_mode="r")
        (folder / "all.counts.npy").unlink()  # the map stays; it is no image of the other side
        ours = Lenses(mapped, np.arange(N_FILES) % 3)
        sampler = EpochBatches(N_FILES, 64, seed=1)
        loaders = {
            "files": DataLoader(Files(folder), batch_size=64, shuffle=True),
            "map": DataLoader(ours, sampler=sampler, batch_size=None),
        }
        seconds = interleaved(
            {name: (lambda loader=loader: [None for _ in loader]) for name, loader in loaders.items()}, rounds
        )
    return {
        "images_per_second": {name: N_FILES / value for name, value in seconds.items()},
        "times_faster_than_files": seconds["files"] / seconds["map"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument(
        "--keep-memory", action="store_true", help="as the stages do, for all sides: see d4lens.allocator"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.keep_memory:
        keep_freed_memory()
    result: dict[str, object] = {
        "hardware": hardware(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "memory_kept": arguments.keep_memory,
        "batch": BATCH,
        "pixels": OBSERVATION.n_pixels,
        "data_loading": loading(arguments.rounds),
        "inference": inference(arguments.rounds, arguments.compile),
        "unet_step": steps("unet", arguments.rounds, arguments.compile),
        "d4lenspinn_step": steps("whole", arguments.rounds, arguments.compile),
        "load_average": os.getloadavg()[0],
    }
    show(result)
    if arguments.out:
        write_json(arguments.out, result)


def hardware() -> str:
    """The processor's name, its cores, and whether it multiplies bfloat16 matrices itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores{', AMX' if torch.cpu._is_amx_tile_supported() else ''}, torch {torch.__version__}"


def show(value: dict[str, object], indent: str = "") -> None:
    """Print nested results, one figure a line."""
    for key, item in value.items():
        if isinstance(item, dict):
            print(f"{indent}{key}:")
            show(item, indent + "  ")
        else:
            print(f"{indent}{key}: {item:.4g}" if isinstance(item, float) else f"{indent}{key}: {item}")


if __name__ == "__main__":
    main()
