"""StopAndResume: a signal to end saves before it stops, and a resumed run goes on with the very next batch."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeVar, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from callbacks.base import run_folder
from callbacks.checkpoints.files import copy_intact
from callbacks.checkpoints.io import DurableCheckpointIO
from callbacks.checkpoints.progress import (
    count_steps_anew,
    epochs_and_batches,
    is_accumulating,
    progress_of,
    raise_max_steps,
    remember_best,
    settled,
    skip_batches,
)
from callbacks.checkpoints.structure import check_best, check_optimisation, check_state
from callbacks.slurm import slurm_job

Kind = TypeVar("Kind", bound=Callback)

OPTIMISATION = ("optimizer_states", "lr_schedulers", "hyper_parameters")  # in a checkpoint
# What we add to a checkpoint, where one of an earlier version lacks it.
DEFAULTS: dict[str, Any] = {"validated": False, "should_stop": False}
DEFAULTS |= {"callback_metrics": {}, "train_metrics": {}, "gradients": {}}
# Ctrl-C, `kill` and a terminal that closes, which Windows does not know.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class Taken(NamedTuple):
    """What a run that goes on keeps of its checkpoint until the first batch after it."""

    own: dict[str, Any]  # what :class:`StopAndResume` added
    callbacks: dict[str, Any]  # their states
    optimisation: dict[str, Any]  # optimisers and schedules, until they are checked


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """A run's callbacks of a kind."""
    return [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, kind)]


def resumable_path(trainer: Trainer) -> Path | None:
    """Where a run keeps the checkpoint that it can be resumed from; None where it keeps none."""
    callbacks = [callback for callback in callbacks_of(trainer, ModelCheckpoint) if callback.dirpath]
    last = [callback for callback in callbacks if not callback.save_weights_only and callback.monitor is None]
    for callback in last or callbacks:
        name = callback.filename if last and callback.filename and "{" not in callback.filename else "last"
        return Path(str(callback.dirpath)) / f"{name}{callback.FILE_EXTENSION}"
    return None


class StopAndResume(Callback):
    """Save and stop after the batch in which one of ``SIGNALS`` came; go on after any batch as if nothing had been.

    It comes first among the callbacks, and stops in the first hook after the batch's last: what other callbacks keep,
    such as averaged weights, has had the batch too.

    Every checkpoint that can be resumed gets what Lightning leaves out of its own: gradients that wait for their
    optimiser step, the metrics of the epoch so far and the newest of those before, whether validation is done, and
    whether a callback has asked for the end.

    The second signal stops at once. Between batches of training, in validation too, the checkpoint goes where the run
    keeps its last one. Under DDP all processes stop after the same batch, whichever got the signal; validation is
    then finished first, because processes may have different numbers of its batches.

    A resumed run writes to a folder of its own. What was best so far is copied there, so that the best of the whole
    run is chosen in the end.

    Attributes:
        resuming: Whether a checkpoint, if there is one, is being taken over: what is raised now is about that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.resuming = False
        self._signum: int | None = None
        self._before: dict[int, Any] = {}  # handlers
        self._validated = False  # after the newest batch of training
        self._accumulating = False  # gradients wait for their optimiser step
        self._ends = False  # has made all its steps, but its epoch is not over
        self._taken: Taken | None = None  # of the checkpoint that is gone on from; None once there was a batch

    # ---- stopping ------------------------------------------------------------------------------------------

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        self._restore_handlers()  # which end the process
        # Not print: the signal may have come within a print.
        with suppress(OSError):  # the terminal is gone
            os.write(2, f"\n{signal.Signals(signum).name}: saving after this batch; once more stops at once\n".encode())

    def _restore_handlers(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = self._signum is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if not asked:
            return
        path = None if getattr(trainer, "fast_dev_run", False) else resumable_path(trainer)
        if path is not None:
            trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            epochs, batches = progress_of(trainer)
            how = f"go on with the same command and --ckpt_path {path}" if path else "nothing is kept of it"
            print(f"stopped after {epochs} epochs and {batches} batches: {how}", file=sys.stderr)
            raise SystemExit(128 + (self._signum or signal.SIGTERM))
        # The first process' exit status counts. Its launcher kills it should another end with one before it does.
        raise SystemExit(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save: signals wait for the end of their batch."""
        self._signum = None
        if threading.current_thread() is threading.main_thread():
            # What the process was told to ignore it ignores: SIGHUP under nohup.
            asking = [*SIGNALS, signal.SIGUSR1] if slurm_job() else SIGNALS
            taken = [signum for signum in asking if signal.getsignal(signum) is not signal.SIG_IGN]
            self._before = {signum: signal.signal(signum, self._ask) for signum in taken}
        if self._taken:
            self._go_on(trainer, pl_module, self._taken)
        self.resuming = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The epoch's pictures: matplotlib's figures are cycles, and Python leaves those to a collection that is due
        # only after some hundred megabytes of them. It takes a tenth of a second.
        gc.collect()
        self._stop_if_asked(trainer)
        if self._taken:
            self._go_on_averaging(trainer, pl_module, self._taken)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._stop_if_asked(trainer)
        if self._taken:
            count_steps_anew(trainer)
            for callback in callbacks_of(trainer, GradientAccumulationScheduler):
                callback.on_train_epoch_start(trainer, pl_module)  # which a run that goes on in mid-epoch leaves out
            gradients = self._taken.own["gradients"]
            for name, weight in pl_module.named_parameters():
                weight.grad = gradients[name].to(pl_module.device).contiguous() if name in gradients else None
            self._taken = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._validated, self._accumulating = False, is_accumulating(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.resuming = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.resuming &= trainer.state.fn == TrainerFn.FITTING
        self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Stop here too; validation starts anew when the run goes on."""
        if self._signum is not None and trainer.world_size == 1:
            for callback in callbacks_of(trainer, WeightAveraging):
                callback.on_validation_epoch_end(trainer, pl_module)  # swaps the weights in training back
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch whose batches were all done before this process has its metrics logged, and counts its steps."""
        if self._ends:
            raise_max_steps(trainer, -1)
            self._ends = False
        if self._taken:
            count_steps_anew(trainer)
            pl_module.log_dict(getattr(pl_module, "train_metrics", {}), on_step=False, on_epoch=True)
            self._taken = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on signals stop at once."""
        self._restore_handlers()
        self._stop_if_asked(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    # ---- what is saved and loaded --------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have files of weights alone hold what validation measured, as whole checkpoints do: averaged weights."""
        self.resuming = True
        io = trainer.strategy.checkpoint_io
        if stage == "fit" and isinstance(io, DurableCheckpointIO):
            io.complete = partial(_averaged, trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the rest of the epoch depends on. Every process takes part: metrics are of all of them."""
        metrics, gradients = {}, {}
        for name, metric in getattr(pl_module, "train_metrics", {}).items():
            with metric.sync_context():
                metrics[name] = {key: value.clone() for key, value in metric.metric_state.items()}
        if self._taken:
            gradients = self._taken.own["gradients"]
        elif self._accumulating:
            found = {name: weight.grad for name, weight in pl_module.named_parameters() if weight.grad is not None}
            gradients = {name: trainer.strategy.reduce(grad.clone(), reduce_op="mean") for name, grad in found.items()}
        checkpoint[type(self).__name__] = {
            "folder": str(run_folder(trainer).absolute()),
            "processes": trainer.world_size,
            "validated": self._validated,
            "should_stop": trainer.should_stop,
            "callback_metrics": dict(trainer.callback_metrics),
            "train_metrics": metrics,
            "gradients": gradients,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the loops' counters agree before Lightning reads them."""
        if trainer.state.fn != TrainerFn.FITTING:
            # WeightAveraging would put the weights in training in place of the averaged ones.
            checkpoint.pop("current_model_state", None)
        elif "fit_loop" in (loops := checkpoint.get("loops", {})):
            own = DEFAULTS | checkpoint.get(type(self).__name__, {})
            self._validated = own["validated"]
            checkpoint["loops"] = {**loops, "fit_loop": settled(loops["fit_loop"], self._validated)}
            _, batches = epochs_and_batches(checkpoint)
            self._ends = batches > 0 and trainer.max_steps == checkpoint["global_step"]
            if not batches:  # the epoch that they are of is over
                own |= {"train_metrics": {}, "gradients": {}}
            optimisation = {key: checkpoint.get(key) for key in OPTIMISATION}
            self._taken = Taken(own, checkpoint.get("callbacks", {}), optimisation)
            for callback, state in _model_checkpoints_and_states(trainer, self._taken):
                if state["dirpath"] == callback.dirpath:
                    check_best(state, callback.monitor is not None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimisers, schedules and gradients that are not the run's; take over what was best so far."""
        taken = self._taken
        if taken is None:
            return
        if self._ends:
            raise_max_steps(trainer, 1)
        then, now = (hparams or {} for hparams in (taken.optimisation["hyper_parameters"], pl_module.hparams))
        averaged = callbacks_of(trainer, StochasticWeightAveraging)  # which has a schedule of its own in the end
        check_optimisation(taken.optimisation, trainer, then.get("schedule") == now.get("schedule") and not averaged)
        gradients = taken.own["gradients"]
        weights = {name: weight for name, weight in pl_module.named_parameters() if name in gradients}
        check_state(gradients, weights, "gradients")
        self._taken = taken._replace(optimisation={})
        for callback, state in _model_checkpoints_and_states(trainer, taken):
            if state["dirpath"] != callback.dirpath:
                _take_best(trainer, callback, state)

    def _go_on(self, trainer: Trainer, pl_module: LightningModule, taken: Taken) -> None:
        """Put back what the rest of the run depends on, before its first batch."""
        done = skip_batches(trainer, self._ends)
        if done:
            rank_zero_info(f"going on after {done} batches of epoch {trainer.current_epoch}")
        trainer.should_stop = trainer.should_stop or taken.own["should_stop"]
        trainer.callback_metrics.update(trainer.strategy.batch_to_device(taken.own["callback_metrics"]))
        metrics = getattr(pl_module, "train_metrics", {}) if trainer.is_global_zero else {}
        for name, state in taken.own["train_metrics"].items():
            if name in metrics:
                metrics[name].merge_state(trainer.strategy.batch_to_device(state))
        if done:
            self._go_on_averaging(trainer, pl_module, taken)

    def _go_on_averaging(self, trainer: Trainer, pl_module: LightningModule, taken: Taken) -> None:
        """Have StochasticWeightAveraging take over its state, which it does as an epoch starts and at a wrong rate."""
        for callback in callbacks_of(trainer, StochasticWeightAveraging):
            if taken.callbacks.get(callback.state_key, {}).get("scheduler_state") is not None:
                groups = trainer.optimizers[0].param_groups
                rates = [group["lr"] for group in groups]
                callback.on_train_epoch_start(trainer, pl_module)
                for group, rate in zip(groups, rates, strict=True):
                    group["lr"] = rate


def _model_checkpoints_and_states(trainer: Trainer, taken: Taken) -> list[tuple[ModelCheckpoint, dict[str, Any]]]:
    """The checkpoint callbacks that have a state in the checkpoint, and that."""
    found = [(callback, taken.callbacks.get(callback.state_key)) for callback in callbacks_of(trainer, ModelCheckpoint)]
    return [(callback, state) for callback, state in found if state is not None]


def _take_best(trainer: Trainer, callback: ModelCheckpoint, state: dict[str, Any]) -> None:
    """Copy what was best so far to the folder of a run that goes on, and have its callback know the scores."""
    kept: dict[Path, Any] = {}
    callback.best_model_path = ""  # Lightning forgets the score where the folder is another, not the path
    for path, score in state["best_k_models"].items() if callback.monitor else []:
        # Beside the checkpoint that is resumed, wherever the run lies now: whatever folder the file may name.
        best = Path(str(trainer.ckpt_path)).with_name(Path(path).name or "?")
        copied = Path(str(callback.dirpath)) / best.name
        wrong = copy_intact(best, copied if trainer.is_global_zero else None)
        if wrong is None:
            kept[copied] = score
        else:
            rank_zero_warn(f"{best}: {wrong}. The best of the run is chosen from what follows only.")
    if kept:
        remember_best(callback, kept)


def _averaged(trainer: Trainer, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with averaged or pruned weights where they are; of weights alone Lightning saves the others."""
    whole = dict(checkpoint)
    changing = [*callbacks_of(trainer, WeightAveraging), *callbacks_of(trainer, ModelPruning)]
    for callback in changing if "callbacks" not in checkpoint else []:
        callback.on_save_checkpoint(trainer, trainer.lightning_module, whole)
    return {**checkpoint, "state_dict": whole["state_dict"]}
