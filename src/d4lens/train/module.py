"""The Lightning module: one step, one epoch, one selection."""

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d4lens import models
from d4lens.errors import D4LensError
from d4lens.models import scores, weights
from d4lens.models.batch import LensBatch
from d4lens.models.fields import FieldNorm
from d4lens.observation import Observation
from d4lens.params import TrainParams
from d4lens.train import losses
from d4lens.train.checkpoint import Progress
from d4lens.train.lenses import augment, epoch_seed

SELECTION = "auc_macro"
NONFINITE = "nonfinite.safetensors"


class TrainingModule(L.LightningModule):
    """Lightning module that trains a network from where its progress stands.

    Each epoch's randomness depends on (seed, epoch) alone. The learning rate is a function of the step, so that a resumed
    schedule cannot differ.

    Parameters
    ----------
    net : nn.Module
        A network of `d4lens.models`.
    observation : Observation
        Pixels, PSF and sky of the images.
    params : TrainParams
        Group `train` of the parameters.
    seed : int
        Of the order of the images and of their augmentation.
    progress : Progress
        Of the epochs done; it is updated in place.
    inspect_folder : Path
        Gets the tensors of a batch whose loss is not finite.
    """

    def __init__(
        self,
        net: nn.Module,
        observation: Observation,
        params: TrainParams,
        seed: int,
        progress: Progress,
        inspect_folder: Path,
    ) -> None:
        super().__init__()
        self.inspect_folder = inspect_folder
        self.net, self.observation, self.params, self.seed, self.progress = net, observation, params, seed, progress
        self.weights = params.losses.model_dump()
        self.needs: tuple[str, ...] = tuple(net.needs)  # type: ignore[arg-type]
        self.losses: tuple[str, ...] = getattr(net, "losses", ())
        self.taught = next((truth for name, truth in losses.TRUTHS.items() if name in self.losses), None)
        self.first = progress.epoch
        self.sums: dict[str, Tensor] = {}
        self.scored: list[tuple[Tensor, Tensor]] = []
        self.row: dict[str, float] = {}
        if reached := progress.part("model"):  # which a finished one no longer has
            net.eval().load_state_dict(reached)
            net.train()

    @property
    def epoch(self) -> int:  # numpydoc ignore=RT01
        """Epochs done, those of earlier sessions included."""
        return self.first + self.current_epoch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make AdamW, which decays kernels only, with the moments of the checkpoint.

        Returns
        -------
        torch.optim.Optimizer
            The optimiser.
        """
        shrunk: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for module in self.net.modules():
            for name, parameter in module.named_parameters(recurse=False):
                norm = isinstance(module, FieldNorm | nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm)
                (free if norm or name == "bias" else shrunk).append(parameter)
        groups: list[dict[str, Any]] = [{"params": shrunk}, {"params": free, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            groups, lr=self.params.learning_rate, weight_decay=self.params.weight_decay, fused=True
        )
        for index, parameter in enumerate(self._optimized(optimizer)):
            for key, value in self.progress.part(f"optimizer.{index}").items():
                # Laid out in memory as the parameter is: the fused kernel pairs them by address.
                like = torch.empty_like(parameter) if value.ndim else torch.empty_like(value)
                optimizer.state[parameter][key] = like.detach().copy_(value)
        return optimizer

    @staticmethod
    def _optimized(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def learning_rate(self, step: int, steps: int) -> float:
        """Warm up linearly over `warmup_fraction` of all steps, then fall by half a cosine to zero (Loshchilov & Hutter 2017).

        Parameters
        ----------
        step : int
            From 0.
        steps : int
            Of the whole training.

        Returns
        -------
        float
            The learning rate of the step.
        """
        warm = self.params.warmup_fraction * steps
        if step < warm:
            return self.params.learning_rate * (step + 1) / (warm + 1)
        return self.params.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's row and its clock."""
        self.sums, self.row = {}, {}
        self.started = time.perf_counter()

    def on_train_batch_start(self, batch: LensBatch, batch_idx: int) -> None:
        """Seed the epoch at its first batch; set the learning rate of this step.

        Parameters
        ----------
        batch : LensBatch
            Not read.
        batch_idx : int
            The batch's number in the epoch.
        """
        if batch_idx == 0:  # not earlier: making the loader's iterator draws a number
            torch.manual_seed(epoch_seed(self.seed, self.epoch, self.global_rank))
        per_epoch = int(self.trainer.num_training_batches)
        step, steps = self.epoch * per_epoch + batch_idx, self.params.epochs * per_epoch
        for name in losses.ANNEALED:
            self.weights[name] = getattr(self.params.losses, name) * (1 - step / steps)
        rate = self.learning_rate(step, steps)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        self.row["learning_rate"] = rate

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient's norm.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Not read.
        """
        # Lightning's own clipping refuses a fused optimiser, for the sake of a gradient scaler that bfloat16 never has.
        if self.params.gradient_clip:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.params.gradient_clip)

    def training_step(self, batch: LensBatch, batch_idx: int) -> Tensor:
        """Compute the total loss of one batch, augmented. Where it is not finite, the tensors are left in a file.

        Parameters
        ----------
        batch : LensBatch
            B images with their labels.
        batch_idx : int
            The batch's number in the epoch.

        Returns
        -------
        Tensor
            A scalar.

        Raises
        ------
        D4LensError
            If the loss is not finite.
        """
        if self.params.augment:
            batch = augment(batch, torch.randint(8, (len(batch),)))
        out = self.net(batch)
        smoothing = self.params.label_smoothing
        terms = {"classification": F.cross_entropy(out["logits"], batch.need("label"), label_smoothing=smoothing)}
        with torch.autocast(self.device.type, enabled=False):
            terms |= losses.physics(self.losses, self.weights, out, batch, self.observation)
        total: Tensor = sum(
            (self.weights.get(name, 1.0) * v for name, v in terms.items() if self.weights.get(name, 1.0) > 0)
        )
        if not torch.isfinite(total):
            self._refuse(terms, batch, out, batch_idx)
        self._add({"loss": total, **terms}, len(batch))
        return total

    def _refuse(self, terms: dict[str, Tensor], batch: LensBatch, out: dict[str, Tensor], batch_idx: int) -> None:
        """Stop, and leave the batch, the network's output and the terms of the loss in a file."""
        step = self.epoch * int(self.trainer.num_training_batches) + batch_idx
        bad = [name for name, value in terms.items() if not torch.isfinite(value)] or ["their sum"]
        rows = sorted(batch.need("index").tolist())
        tensors = {
            f"{kind}.{k}": v
            for kind, part in (("batch", batch.entries()), ("out", out), ("loss", terms))
            for k, v in part.items()
        }
        kept = self.inspect_folder / NONFINITE
        weights.write(kept, tensors, {"step": step, "rows": rows, "bad": bad})
        raise D4LensError(
            f"the loss is not finite at step {step} (epoch {self.epoch + 1}, batch {batch_idx + 1}; {', '.join(bad)}); "
            f"look at rows {rows} of train.npy and at their tensors in {kept}, or lower train.learning_rate"
        )

    def _add(self, values: dict[str, Tensor], count: int) -> None:
        values = {**values, "images": torch.ones((), device=self.device)}
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double() * count

    def on_validation_epoch_start(self) -> None:
        """Stop the training's clock."""
        self.progress.training_seconds += time.perf_counter() - self.started
        self.scored = []

    def validation_step(self, batch: LensBatch, batch_idx: int) -> None:
        """Keep the batch's logits.

        Parameters
        ----------
        batch : LensBatch
            Images with their labels.
        batch_idx : int
            Not read.
        """
        self.scored.append((self.net(batch)["logits"].float().cpu(), batch.need("label").cpu()))

    def on_validation_epoch_end(self) -> None:
        """Score the selection split.

        Raises
        ------
        D4LensError
            If the logits are not finite.
        """
        logits, labels = (torch.cat(parts) for parts in zip(*self.scored))
        if not torch.isfinite(logits).all():
            raise D4LensError(
                f"the network's output is not finite after epoch {self.epoch + 1}; lower train.learning_rate"
            )
        found = scores.score(labels.numpy(), scores.softmax(logits.numpy()))
        self.row |= {
            "select_loss": F.cross_entropy(logits.double(), labels).item(),
            f"select_{SELECTION}": found[SELECTION],
            "select_accuracy": found["accuracy"],
        }

    def close_epoch(self) -> None:
        """Close the epoch's row, and take the weights if they score best so far on the selection split."""
        totals = {
            name: float(self.trainer.strategy.reduce(value, reduce_op="sum")) for name, value in self.sums.items()
        }
        images = totals.pop("images")
        means = {name: total / images for name, total in totals.items()}
        done = self.epoch + 1
        self.progress.epoch = done
        self.progress.history.append({"epoch": done, **means, **self.row})
        weights = models.state(self.net)
        tensors = {f"model.{name}": value for name, value in weights.items()}
        if self.row[f"select_{SELECTION}"] > self.progress.best_score:
            self.progress.best_score, self.progress.best_epoch = self.row[f"select_{SELECTION}"], done
            tensors |= {f"best.{name}": value.clone() for name, value in weights.items()}
        else:
            tensors |= {f"best.{name}": value for name, value in self.progress.part("best").items()}
        tensors |= self._optimizer_tensors()
        self.progress.tensors = tensors

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        optimizer = self.trainer.optimizers[0]
        state: dict[Any, dict[str, Tensor]] = optimizer.state
        return {
            f"optimizer.{index}.{key}": value.detach().clone()
            for index, parameter in enumerate(self._optimized(optimizer))
            for key, value in state.get(parameter, {}).items()
        }
