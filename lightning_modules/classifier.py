"""AlexNetClassifier: loss, accuracies, optimiser and schedule around the network."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR, ReduceLROnPlateau
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.alexnet import AlexNet
from lightning_modules.arguments import check, check_choice
from lightning_modules.cuda_convnet import CudaConvnet

Schedule = Literal["plateau", "milestones", "one_cycle", "constant"]
Network = Literal["alexnet", "19pct", "conv-local-13pct", "conv-local-11pct", "conv-local-11pct-first"]
Stage = Literal["train", "val", "test"]


class AlexNetClassifier(LightningModule):
    """AlexNet with cross entropy, top-1 and top-5, and SGD. The defaults are the paper's (section 5).

    Args:
        lr: Learning rate; the peak of ``one_cycle``. 0.01 in the paper. A small network's biases have twice as much.
        momentum: 0.9 in the paper.
        weight_decay: On weights and biases; 0.0005 in the paper. Of a small network the locally connected layers', or
            without such the convolutions'; the others' stand to it as in its layer file, and biases have none.
        schedule: ``plateau`` is the paper's: divided by 10 when the validation error stops improving, three times at
            most. ``milestones`` divides at given epochs. ``one_cycle`` warms up over the first part of the run and
            anneals to nothing over the rest, which makes a short run train. ``constant`` leaves it.
        patience: Epochs without a better validation top-1 before ``plateau`` divides. The paper did it by hand.
        milestones: Epochs at which ``milestones`` divides; ``null`` for 30 and 60.
        warmup: Part of the run over which ``one_cycle`` rises to ``lr``.
        channels_last: Keep the activations in the memory layout in which the convolutions are fastest: a tenth of the
            step on a CPU; on a GPU with half precision the layout of its matrix units. The weights stay contiguous.
        compile: Run the network through ``torch.compile``. Checkpoints are the same with and without.
        seed: Of dropout's masks, which are functions of (seed, epoch, batch, process).
        network: ``alexnet``, or one of the paper's small networks for CIFAR-10, by its layer file's name: see
            :class:`~lightning_modules.cuda_convnet.CudaConvnet`.
        arguments: :class:`~lightning_modules.alexnet.AlexNet`'s, with its defaults. A small network has some of them,
            and refuses what its layer file has otherwise.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Krizhevsky et al. 2012, sections 4 and 5. The paper's ``v <- 0.9 v - 0.0005 e w - e g`` equals torch's SGD at a
        constant learning rate; after a cut torch rescales the stored velocity at once, the paper's lets it decay.
    """

    def __init__(
        self,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: Schedule = "plateau",
        patience: int = 5,
        milestones: list[int] | None = None,
        warmup: float = 0.25,
        channels_last: bool = True,
        compile: bool = False,
        seed: int = 0,
        network: Network = "alexnet",
        **arguments: Any,
    ) -> None:
        super().__init__()
        check(0 < lr < math.inf, "lr", lr, "a finite number above 0", "Choose one, such as 0.01")
        check(0 <= momentum < 1, "momentum", momentum, "a number in [0, 1)", "Choose one, such as 0.9")
        decays = 0 <= weight_decay < math.inf
        check(decays, "weight_decay", weight_decay, "a finite number from 0 up", "Choose one, such as 0.0005")
        check_choice("schedule", schedule, get_args(Schedule))
        check(patience >= 0, "patience", patience, "0 epochs or more", "Choose such a number")
        above_0 = all(epoch >= 1 for epoch in milestones or [])
        check(above_0, "milestones", milestones, "epochs above 0", "Choose the epochs to divide at")
        check(0 < warmup < 1, "warmup", warmup, "a part of the run between 0 and 1", "Choose one, such as 0.25")
        self.save_hyperparameters()
        self.lr, self.momentum, self.weight_decay, self.seed = lr, momentum, weight_decay, seed
        self.schedule, self.patience, self.warmup = schedule, patience, warmup
        self.milestones = [30, 60] if milestones is None else milestones
        self.num_classes = arguments.get("num_classes", 10)
        self.net: AlexNet | CudaConvnet
        if network == "alexnet":
            self.net = AlexNet(**arguments)
        else:
            self.net = CudaConvnet(network, **dict(arguments))  # as **arguments the command line would offer its too
        # The images' layout goes through all convolutions; as the weights' it would keep them from being flattened.
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format
        if compile:
            self.net.compile()  # in place: torch.compile(self.net) would change the checkpoint's keys
        else:  # for the summary, which runs it in evaluation mode; one image would be compiled for by itself
            self.example_input_array = torch.zeros(1, 3, self.net.image_size, self.net.image_size)
        self.train_accuracies, self.val_accuracies, self.test_accuracies = (
            _accuracies(self.num_classes, stage) for stage in get_args(Stage)
        )
        # Lightning's own mean over processes rounds half an image away where their shares differ. A loss that is no
        # number stays one, where torchmetrics would leave it out; its "disable" does that too, but forgets the weights.
        losses = (MeanMetric(nan_strategy=math.nan) for _ in get_args(Stage))
        self.train_loss, self.val_loss, self.test_loss = losses

    @property
    def train_metrics(self) -> dict[str, Any]:
        """The metrics of an epoch of training by the names that they are logged by."""
        return {"train/loss": self.train_loss, **dict(self.train_accuracies.items())}

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)`` of ``(B, 3, H, W)`` float images."""
        return self.net(self._input(images))

    def embed(self, images: Tensor) -> Tensor:
        """The last hidden layer's activations ``(B, D)`` of ``(B, 3, H, W)`` float images: fc7's 4096 (section 6.1)."""
        return self.net.embed(self._input(images))

    def _input(self, images: Tensor) -> Tensor:
        return images.to(self.dtype, memory_format=self.memory_format)

    def log_probabilities(self, images: Tensor) -> Tensor:
        """Log-probabilities ``(B, C)`` of ``(B, 3, H, W)`` images or of ``(B, crops, 3, H, W)`` views of them.

        In float32 or better, whatever the network computes in.

        Several views are averaged after the softmax, as in section 4.1: "averaging the predictions made by the
        network's softmax layer on the ten patches".
        """
        logits = self(images.flatten(0, -4))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if images.dim() == 4:
            return F.log_softmax(logits, dim=1)
        views = logits.unflatten(0, images.shape[:2])  # (B, crops, C)
        return F.log_softmax(views, dim=2).logsumexp(1) - float(np.log(images.shape[1]))

    def model_step(self, batch: tuple[Tensor, Tensor], stage: Stage) -> dict[str, Tensor]:
        """Loss and metrics of a batch, the same for the three stages. Metrics are logged once an epoch.

        Returns:
            ``loss``, a scalar; and ``log_probabilities``, ``(B, C)`` float without gradient, for the callbacks to
            which Lightning hands it at the batch's end.
        """
        images, targets = batch
        log_probabilities = self.log_probabilities(images)
        loss = F.nll_loss(log_probabilities, targets)
        accuracies, mean_loss = getattr(self, f"{stage}_accuracies"), getattr(self, f"{stage}_loss")
        # bf16-true takes the mean along, whose dtype may not say so; and bfloat16 counts no further than 256.
        if min(mean_loss.dtype.itemsize, mean_loss.mean_value.dtype.itemsize) < 4:
            mean_loss.set_dtype(torch.float32)
        accuracies.update(log_probabilities.detach(), targets)
        mean_loss.update(loss.detach(), len(targets))
        self.log(f"{stage}/loss", mean_loss, on_step=False, on_epoch=True, batch_size=len(targets))
        bar = stage == "val"
        self.log_dict(accuracies, prog_bar=bar, on_step=False, on_epoch=True, batch_size=len(targets))
        return {"loss": loss, "log_probabilities": log_probabilities.detach()}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Give this step's dropout numbers of its own, which nothing before it changes, a callback or a restart."""
        keys = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]) >> 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The accuracies are those of the augmented images, with dropout, while the epoch goes on."""
        loss = self.model_step(batch, "train")["loss"]
        self.log("train/loss_step", loss.detach(), on_step=True, on_epoch=False, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self.model_step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self.model_step(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Probabilities ``(B, C)`` of a batch's images."""
        return self.log_probabilities(batch[0]).exp()

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """All alike (section 5), but for the small networks, whose layer files have rates and decays of their own."""
        if isinstance(self.net, CudaConvnet):
            return self.net.parameter_groups(self.lr, self.weight_decay)
        return [{"params": list(self.parameters()), "lr": self.lr, "weight_decay": self.weight_decay}]

    def _fused(self) -> bool:
        """Whether SGD's step is one kernel: Lightning does not clip for it where it undoes the loss's scale itself."""
        with suppress(RuntimeError):  # there may be no trainer
            return not (isinstance(self.trainer.precision_plugin, MixedPrecision) and self.trainer.gradient_clip_val)
        return True

    def configure_optimizers(self) -> Any:
        groups = self._parameter_groups()
        sgd = torch.optim.SGD(groups, self.lr, self.momentum, fused=self._fused())
        rates = [group["lr"] for group in groups]
        if self.schedule == "plateau":
            # min_lr: three cuts. threshold 0: any better validation top-1 counts as an improvement.
            plateau = ReduceLROnPlateau(sgd, "max", 0.1, self.patience, threshold=0.0, min_lr=[r * 1e-3 for r in rates])
            # strict: without validation Lightning would end the run, although on_train_epoch_end looks.
            return [sgd], [{"scheduler": plateau, "monitor": "val/top1", "strict": False}]
        if self.schedule == "milestones":
            return [sgd], [MultiStepLR(sgd, self.milestones, gamma=0.1)]
        if self.schedule == "one_cycle":
            # torch divides by zero where the rise is less than two steps: a run that short does not see the end.
            steps = max(int(self.trainer.estimated_stepping_batches), math.ceil(2 / self.warmup))
            cycle = OneCycleLR(sgd, rates, total_steps=steps, pct_start=self.warmup, cycle_momentum=False)
            return [sgd], [{"scheduler": cycle, "interval": "step"}]
        return sgd

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Have a run that goes on heed its own settings, and lay momentum out as the weights are.

        A schedule that is another, or has another rate, begins here. Fused SGD reads momentum and weights as they lie,
        and earlier runs' momentum is channels_last.
        """
        before = checkpoint.get("hyper_parameters", {})
        anew = any(before.get(name, now) != now for name, now in (("lr", self.lr), ("schedule", self.schedule)))
        if anew:
            checkpoint["lr_schedulers"] = []
        for schedule in checkpoint.get("lr_schedulers", []):
            if "patience" in schedule:
                schedule["patience"] = self.patience
        for optimizer in checkpoint.get("optimizer_states", []):
            groups = self._parameter_groups()
            for group, ours in zip(optimizer["param_groups"], groups, strict=False):  # a callback may add some
                group |= {"momentum": self.momentum, "weight_decay": ours["weight_decay"], "fused": self._fused()}
                group |= {"lr": ours["lr"], "initial_lr": ours["lr"]} if anew else {}
            for state in optimizer["state"].values():
                state.update({key: value.contiguous() for key, value in state.items() if isinstance(value, Tensor)})

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Leave ``plateau`` to ``on_train_epoch_end``: Lightning's turn comes when last.ckpt is already written."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_train_epoch_end(self) -> None:
        """Let ``plateau`` look at the epoch, so that the epoch's checkpoint has what came of it."""
        scheduler, top1 = self.lr_schedulers(), self.trainer.callback_metrics.get("val/top1")
        if isinstance(scheduler, ReduceLROnPlateau) and top1 is not None:
            scheduler.step(top1)


def _accuracies(classes: int, stage: str) -> MetricCollection:
    """Top-1 and top-5 over all images alike: torchmetrics averages over classes unless told ``micro``."""
    top1, top5 = (
        MulticlassAccuracy(classes, top_k=min(k, classes), average="micro", validate_args=False) for k in (1, 5)
    )
    # Each by itself: torchmetrics makes one of two that happen to agree on the first batch, for good.
    return MetricCollection({"top1": top1, "top5": top5}, prefix=f"{stage}/", compute_groups=False)
