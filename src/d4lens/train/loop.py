"""From folders to a trained network: the loop is Lightning's, the checkpoints are ours (Lightning's are pickles)."""

import json
import logging
import sys
import time
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import pandas as pd
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from d4lens import models
from d4lens.data import arrays
from d4lens.errors import D4LensError
from d4lens.files import atomic_path, sha256, sole_writer, write_json
from d4lens.macrofit.columns import SMOOTH_LENS_FILE
from d4lens.models import weights
from d4lens.parallel import Ranks, ranks, together
from d4lens.params import TrainParams
from d4lens.train import checkpoint
from d4lens.train.lenses import EpochBatches, Lenses, epoch_seed, load_lenses
from d4lens.train.module import SELECTION, TrainingModule
from d4lens.train.norms import synchronise

_log = logging.getLogger(__name__)
_BUILD = 2**31  # no epoch: the seed of the first weights


class Mirror(Protocol):
    """Receiver of each epoch's numbers, such as `d4lens.tracking.Tracker`."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Take one epoch's row, without its number.

        Parameters
        ----------
        metrics : dict of str to float
            The row.
        step : int
            The epoch's number.
        """
        ...


def fingerprint(
    arrays_folder: str | Path,
    macrofit_folder: str | Path | None,
    network_name: str,
    options: dict[str, Any],
    seed: int,
    params: TrainParams,
    start: str | Path | None = None,
) -> str:
    """Name the result of `train_network` with these arguments.

    Names are equal for equal parameters, data, code, processes, device and precision.

    Parameters
    ----------
    arrays_folder, macrofit_folder, network_name, options, seed, params
        As for `train_network`.
    start : str or Path, optional
        As for `train_network`.

    Returns
    -------
    str
        SHA-256 in hexadecimal.
    """
    return checkpoint.combined(_digests(arrays_folder, macrofit_folder, network_name, options, seed, params, start))


def _digests(
    arrays_folder: str | Path,
    macrofit_folder: str | Path | None,
    network_name: str,
    options: dict[str, Any],
    seed: int,
    params: TrainParams,
    start: str | Path | None = None,
) -> checkpoint.Digests:
    parameters = {"network": network_name, "options": options, "seed": seed, "train": params.model_dump()}
    if start is not None:
        parameters["start"] = sha256(Path(start))
    folders = [arrays_folder, *([macrofit_folder] if macrofit_folder is not None else [])]
    for folder in folders:
        if not Path(folder).is_dir():
            raise D4LensError(f"there is no folder {folder}; run the stage that makes it")
    setting = {"processes": ranks().world, "device": _device(), "precision": precision(params.precision)}
    return checkpoint.digests(parameters, setting, *folders)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _agree(digests: checkpoint.Digests, own_ranks: Ranks) -> None:
    """Check that all processes train alike. Raises D4LensError in one that would train otherwise than the first."""
    mine = [float(int(digest[:12], 16)) for digest in digests.values()]  # 48 bits: exact
    first = own_ranks.total(value if own_ranks.is_main else 0.0 for value in mine)
    other = [name for name, a, b in zip(digests, mine, first) if a != b]
    if other:
        raise D4LensError(
            f"process {own_ranks.rank} has other {', '.join(other)} than the first; give all machines the same, and name "
            "train.precision where they differ in hardware"
        )


@together()
def train_network(
    arrays_folder: str | Path,
    macrofit_folder: str | Path | None,
    out_folder: str | Path,
    work_folder: str | Path,
    network_name: str,
    options: dict[str, Any],
    seed: int,
    params: TrainParams,
    tracker: Mirror | None = None,
    start: str | Path | None = None,
) -> dict[str, float]:
    """Train one network and keep the epoch with the best score on the `select` split.

    Under torchrun and its like (`d4lens.parallel`) several processes train it together, each with its own share of a batch as many
    times as large: one accelerator each, or one CPU process each where there is none. All end where one does.

    Parameters
    ----------
    arrays_folder, macrofit_folder : str or Path
        Outs of the stages `preprocess` and `macrofit`; the latter is None where the network needs no fit.
    out_folder : str or Path
        Gets model.safetensors (weights and description), history.csv (one row an epoch) and timing.json.
    work_folder : str or Path
        Checkpoints, one an epoch. The same call after any interruption goes on from the last, and ends with the weights
        and history of a training never interrupted (bit for bit on one machine's CPU with as many threads). At the end
        the folder keeps the result: the same call then trains nothing and writes the same outs.
    network_name : str
        One of `models.NAMES`.
    options : dict
        Of the network, as `models.build` takes them.
    seed : int
        Of the first weights, the order of the images and their augmentation.
    params : TrainParams
        Group `train` of the parameters.
    tracker : Mirror, optional
        Receives each epoch's row.
    start : str or Path, optional
        Weights of the same network, as this function writes them, to start from instead of first ones.

    Returns
    -------
    dict of float
        The best epoch's row.

    Raises
    ------
    D4LensError
        For unusable folders, options or parameters, for a loss that is not finite, and while another process trains in
        `work_folder`.
    """
    digests = _digests(arrays_folder, macrofit_folder, network_name, options, seed, params, start)
    observation = arrays.load_observation(arrays_folder)
    out_folder, work_folder = Path(out_folder), Path(work_folder)
    own_ranks = ranks()
    is_main = own_ranks.is_main
    _agree(digests, own_ranks)
    with sole_writer(work_folder) if is_main else nullcontext():
        # The network is built before the checkpoint is looked at, so that a fresh start and a resumed one draw alike.
        torch.manual_seed(epoch_seed(seed, _BUILD))
        net = models.build(network_name, observation, **options)
        if start is not None:
            net.eval().load_state_dict(weights.read(start)[0])  # escnn's keys are those of eval mode
            net.train()
        if not is_main:  # not before the first process has passed over what cannot be used
            own_ranks.wait()
        progress = checkpoint.latest(work_folder, digests)
        if is_main:
            own_ranks.wait()
        done = progress.epoch == params.epochs
        if progress.epoch and is_main:
            how = (
                f"trained already, its outs are written again; remove {work_folder} to train anew"
                if done
                else "going on"
            )
            _log.warning("%s, seed %d: %s after epoch %d of %d", network_name, seed, how, progress.epoch, params.epochs)
        module = TrainingModule(net, observation, params, seed, progress, work_folder)
        keeper = _Keeper(work_folder, digests, tracker)
        if not done:
            images, select = (
                load_lenses(
                    arrays_folder,
                    macrofit_folder,
                    split,
                    module.needs,
                    observation,
                    presets=params.presets,
                    convergence=taught,
                )
                for split, taught in (("train", module.taught), ("select", None))
            )
            if params.limit is not None:
                images = images.first(params.limit, seed)
            progress.n_images = len(images)
            _fit(module, images, select, keeper)
        elif is_main:
            keeper.mirror(progress.history)
        best = progress.history[progress.best_epoch - 1]
        if is_main:
            _publish(out_folder, module, network_name, options, _facts(macrofit_folder, checkpoint.combined(digests)))
            checkpoint.finish(work_folder, progress, digests)
    return best


def precision(wanted: str) -> str:
    """Return Lightning's name of the precision; `auto` is bfloat16 where the hardware computes in it, else float32.

    Parameters
    ----------
    wanted : str
        "auto", or one of Lightning's names, which is returned as it is.

    Returns
    -------
    str
        "bf16-mixed", "32-true", or what was wanted.
    """
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    cpu = torch.cpu
    return "bf16-mixed" if cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported() else "32-true"


def _fit(module: TrainingModule, images: Lenses, select: Lenses, keeper: "_Keeper") -> None:
    params = module.params
    shown = sys.stderr.isatty()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    own_ranks = ranks()
    if own_ranks.world > 1:
        synchronise(module.net)
    trainer = L.Trainer(
        max_epochs=params.epochs - module.first,
        devices=own_ranks.local_world if own_ranks.world > 1 else 1,
        num_nodes=own_ranks.machines,
        strategy="ddp" if own_ranks.world > 1 else "auto",
        # Not guessed: other launchers set the same.
        plugins=[TorchElasticEnvironment()] if own_ranks.world > 1 else None,
        precision=precision(params.precision),  # type: ignore[arg-type]
        deterministic="warn" if torch.cuda.is_available() else None,
        callbacks=[keeper, *([TQDMProgressBar()] if shown else [])],
        enable_progress_bar=shown,
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
        # escnn keeps the filters it expands for validation; made in inference mode they could not be trained on.
        inference_mode=False,
        use_distributed_sampler=False,
    )
    # Lightning's own handler broadcasts from within whatever collective it interrupts, and all wait for ever.
    connector = trainer._signal_connector
    connector._sigterm_notifier_fn = lambda *_: setattr(connector, "received_sigterm", True)  # type: ignore[method-assign]
    batches = EpochBatches(
        len(images), params.batch_size, module.seed, module.first, trainer.global_rank, trainer.world_size
    )
    module.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with warnings.catch_warnings():
        # A worker process would have to copy what the memory map already gives at once.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own, of torch's names
        try:
            in_order = BatchSampler(SequentialSampler(range(len(select))), 2 * params.batch_size, drop_last=False)
            trainer.fit(
                module,
                DataLoader(images, sampler=batches, batch_size=None),
                DataLoader(select, sampler=in_order, batch_size=None),
            )
        except (SIGTERMException, RuntimeError):
            if not trainer.received_sigterm:
                raise
            # Lightning's exception is a SystemExit without a code: to the caller it would look like success. A
            # RuntimeError is a collective with one that SIGTERM has ended already.
            _log.warning("process %d of %d was ended by SIGTERM", trainer.global_rank, trainer.world_size)
            raise SystemExit(143) from None


class _Keeper(L.Callback):
    """After each epoch: checkpoint, tracker, one line of text."""

    def __init__(self, folder: Path, digests: checkpoint.Digests, tracker: Mirror | None) -> None:
        self.folder, self.digests, self.tracker = folder, digests, tracker

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.since = time.perf_counter()
        progress: checkpoint.Progress = module.progress  # type: ignore[assignment]
        now = torch.get_num_threads()
        if trainer.is_global_zero:
            self.mirror(progress.history)
            if set(progress.threads) - {now}:
                _log.warning(
                    "going on with %d threads after %s: sums are rounded differently, so the result will differ from that of an "
                    "uninterrupted training in the last bits",
                    now,
                    " and ".join(map(str, progress.threads)),
                )
        progress.threads = sorted({*progress.threads, now})

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        module.close_epoch()  # type: ignore[operator]
        progress: checkpoint.Progress = module.progress  # type: ignore[assignment]
        now = time.perf_counter()
        progress.seconds += now - self.since
        self.since = now
        if trainer.is_global_zero:
            checkpoint.save(self.folder, progress, self.digests)
            row = progress.history[-1]
            self.mirror([row])
            print(
                f"epoch {row['epoch']}: loss {row['loss']:.4f}, select macro AUC {row[f'select_{SELECTION}']:.4f}, "
                f"{progress.seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    def mirror(self, rows: Iterable[dict[str, float]]) -> None:
        """Send rows of epochs to the tracker."""
        if self.tracker is not None:
            for row in rows:
                self.tracker.log_metrics({k: v for k, v in row.items() if k != "epoch"}, step=int(row["epoch"]))


def _facts(macrofit_folder: str | Path | None, fingerprint: str) -> dict[str, Any]:
    """Collect what the weights say of their origin: fingerprint, and whose maps they read if not the specialist's."""
    beside = Path(macrofit_folder) / SMOOTH_LENS_FILE if macrofit_folder is not None else None
    whose = json.loads(beside.read_text(encoding="utf-8")) if beside is not None and beside.is_file() else {}
    return {"fingerprint": fingerprint, **whose}


def _publish(folder: Path, module: TrainingModule, name: str, options: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write the three outs; only timing.json holds what differs between two equal trainings."""
    progress = module.progress
    description = {
        **models.describe(name, module.observation, options, module.net),
        "seed": module.seed,
        "epoch": progress.best_epoch,
        "n_train": progress.n_images,
        f"select_{SELECTION}": progress.best_score,
        **facts,
        "versions": checkpoint.versions(),
    }
    weights.write(folder / "model.safetensors", progress.part("best"), description)
    first = ["epoch", "learning_rate", "loss"]
    with atomic_path(folder / "history.csv") as temporary:
        table = pd.DataFrame(progress.history)
        table[first + sorted(set(table.columns) - set(first))].to_csv(temporary, index=False)
    timing = {
        "train_minutes": round(progress.seconds / 60, 3),
        "images_per_second": round(progress.n_images * progress.epoch / max(progress.training_seconds, 1e-9), 1),
        "parameters": description["n_parameters"],
    }
    write_json(folder / "timing.json", timing)
