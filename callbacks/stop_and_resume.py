"""StopAndResume: SIGTERM and Ctrl-C save before they stop, and a resumed run goes on with the very next batch."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from callbacks.checkpoints.files import copy_intact
from callbacks.checkpoints.io import DurableCheckpointIO
from callbacks.checkpoints.progress import (
    batches_done,
    count_steps_anew,
    is_accumulating,
    progress_of,
    remember_best,
    saved_at,
    settled,
)
from callbacks.checkpoints.structure import check_best, check_optimizer, check_state, misfit

Kind = TypeVar("Kind", bound=Callback)

TAKEN = ("callbacks", "optimizer_states", "lr_schedulers", "hyper_parameters")  # of a checkpoint, kept for a moment
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """The end of a process that a signal asked to stop: exit status 143 for SIGTERM, 130 for SIGINT."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


@contextmanager
def exit_status_of_signals() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the process at once with 143 and 130, as shells expect; for around a whole run."""

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, stop) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """A run's callbacks of a kind."""
    return [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, kind)]


def model_checkpoints(trainer: Trainer, resumable: bool = False) -> list[ModelCheckpoint]:
    """A run's checkpoint callbacks; with ``resumable`` those that keep all it takes to go on."""
    callbacks = callbacks_of(trainer, ModelCheckpoint)
    return [callback for callback in callbacks if not (resumable and callback.save_weights_only)]


def resumable_path(trainer: Trainer) -> Path | None:
    """Where a run keeps the checkpoint that it can be resumed from; None where it keeps none."""
    callbacks = [callback for callback in model_checkpoints(trainer) if callback.dirpath]
    last = [callback for callback in callbacks if not callback.save_weights_only and callback.monitor is None]
    for callback in last or callbacks:
        name = callback.filename if last and callback.filename and "{" not in callback.filename else "last"
        return Path(str(callback.dirpath)) / f"{name}{callback.FILE_EXTENSION}"
    return None


class StopAndResume(Callback):
    """Save and stop after the batch in which SIGTERM or SIGINT came; go on after any batch as if nothing had been.

    It comes first among the callbacks, and stops in the first hook after the batch's last: what other callbacks keep,
    such as averaged weights, has had the batch too.

    The second signal stops at once. Between batches of training, in validation too, the checkpoint goes where the run
    keeps its last one. Under DDP all processes stop after the same batch, whichever got the signal; validation is
    then finished first, because processes may have different numbers of its batches.

    A resumed run writes to a folder of its own. What was best so far is copied there, so that the best of the whole
    run is chosen in the end.

    Attributes:
        resuming: Whether a checkpoint is being taken over: what is raised now is about that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.resuming = False
        self._signum: int | None = None
        self._before: dict[int, Any] = {}  # handlers
        self._between = False  # batches: nothing is half done, and validation, if it is due, is not done
        self._resumed = False  # from a checkpoint, and no batch since
        self._taken: dict[str, Any] = {}  # that checkpoint

    # ---- stopping ------------------------------------------------------------------------------------------

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            raise Stopped(signum)
        self._signum = signum
        # Not print: the signal may have come within a print.
        os.write(2, f"\n{signal.Signals(signum).name}: saving after this batch; once more stops at once\n".encode())

    def _restore_handlers(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _stop_if_asked(self, trainer: Trainer, save: bool = True) -> None:
        asked = self._signum is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if not asked:
            return
        path = None if getattr(trainer, "fast_dev_run", False) else resumable_path(trainer)
        if path is not None and save:
            trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            epochs, batches = progress_of(trainer)
            how = f"go on with the same command and --ckpt_path {path}" if path else "nothing is kept of it"
            print(f"stopped after {epochs} epochs and {batches} batches: {how}", file=sys.stderr)
            raise Stopped(self._signum or signal.SIGTERM)
        # The first process' exit status counts. Its launcher kills it should another end with one before it does.
        raise SystemExit(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save: signals wait for the end of their batch."""
        self._signum, self._between = None, True
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._ask) for signum in SIGNALS}
        done = batches_done(trainer) if self._resumed else 0
        if done:
            loader = cast(Any, trainer.train_dataloader)
            if hasattr(loader.sampler, "skip"):
                loader.sampler.skip = done * loader.batch_size
            where = f"{done} batches of epoch {trainer.current_epoch}"
            rank_zero_info(f"going on after {where}, whose train/ metrics are of the rest")
        for callback in callbacks_of(trainer, StochasticWeightAveraging) if self._resumed else []:
            callback.on_train_epoch_start(trainer, pl_module)  # it takes its state over there only
        self.resuming = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last checkpoint was written a moment ago, unless there is no callback for it."""
        # The epoch's pictures: matplotlib's figures are cycles, and Python leaves those to a collection that is due
        # only after some hundred megabytes of them. It takes a tenth of a second.
        gc.collect()
        saved = any(saved_at(callback) == trainer.global_step for callback in model_checkpoints(trainer, True))
        self._stop_if_asked(trainer, save=not saved)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._resumed:
            count_steps_anew(trainer)
            self._resumed = False
        if self._between:
            self._stop_if_asked(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._between = not is_accumulating(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.resuming = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.resuming &= trainer.state.fn == TrainerFn.FITTING
        if self._between:
            self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Stop here too; validation starts anew when the run goes on."""
        if self._between and self._signum is not None and trainer.world_size == 1:
            for callback in callbacks_of(trainer, WeightAveraging):
                callback.on_validation_epoch_end(trainer, pl_module)  # swaps the weights in training back
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that stopped here would validate twice: the next step comes first."""
        self._between = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is saved. From here on signals stop at once."""
        self._between = False
        self._restore_handlers()
        self._stop_if_asked(trainer, save=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    # ---- what is saved and loaded --------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have files of weights alone hold what validation measured, as whole checkpoints do: averaged weights."""
        io = trainer.strategy.checkpoint_io
        if stage == "fit" and isinstance(io, DurableCheckpointIO):
            io.complete = partial(_averaged, trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the loops' counters agree before Lightning reads them."""
        self.resuming = True
        if trainer.state.fn == TrainerFn.FITTING and "fit_loop" in checkpoint.get("loops", {}):
            checkpoint["loops"] = {**checkpoint["loops"], "fit_loop": settled(checkpoint["loops"]["fit_loop"])}
            self._resumed = True
            self._taken = {key: checkpoint.get(key) for key in TAKEN}
            for callback, state in self._of_checkpoints(trainer):
                if state["dirpath"] == callback.dirpath:
                    check_best(state, callback.monitor is not None)
        if trainer.state.fn != TrainerFn.FITTING:
            # WeightAveraging would put the weights in training in place of the averaged ones.
            checkpoint.pop("current_model_state", None)

    def _of_checkpoints(self, trainer: Trainer) -> list[tuple[ModelCheckpoint, dict[str, Any]]]:
        """The checkpoint callbacks that have a state in the checkpoint, and that."""
        states = self._taken["callbacks"] or {}
        return [(one, states[one.state_key]) for one in model_checkpoints(trainer) if one.state_key in states]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimisers and schedules that are not the run's; take over what was best so far."""
        if not self._resumed:
            return
        then, now = (hparams or {} for hparams in (self._taken["hyper_parameters"], pl_module.hparams))
        averaged = callbacks_of(trainer, StochasticWeightAveraging)  # which has a schedule of its own in the end
        check_optimisation(self._taken, trainer, then.get("schedule") == now.get("schedule") and not averaged)
        for callback, state in self._of_checkpoints(trainer):
            if state["dirpath"] == callback.dirpath:
                continue
            # Lightning forgets the score where the folder is another, not the path.
            score, name, callback.best_model_path = state["best_model_score"], Path(state["best_model_path"]).name, ""
            if callback.monitor is None or score is None:
                continue
            # Beside the checkpoint that is resumed, wherever the run lies now; a file's word for another place is none.
            best, copied = Path(str(trainer.ckpt_path)).with_name(name or "?"), Path(str(callback.dirpath)) / name
            wrong = copy_intact(best, copied if trainer.is_global_zero else None)
            if wrong is not None:
                rank_zero_warn(f"{best}: {wrong}. The best of the run is chosen from what follows only.")
                continue
            remember_best(callback, copied, score)
        self._taken = {}


def check_optimisation(checkpoint: Mapping[str, Any], trainer: Trainer, same_schedule: bool) -> None:
    """Refuse optimisers' and schedules' states of another kind than the trainer's own, which are set up.

    Args:
        checkpoint: As Lightning wrote it.
        trainer: At the start of its run.
        same_schedule: Whether the schedules are those of the checkpoint's run. Another leaves other keys behind.

    Raises:
        MisfitError: One line that names the first place.
    """
    kinds = (bool, str, type(None))  # settings, where numbers are states
    for optimizer, theirs in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=False):
        check_optimizer(theirs, [parameter for group in optimizer.param_groups for parameter in group["params"]])
        ours, groups = optimizer.state_dict()["param_groups"], theirs.get("param_groups")
        groups = groups if isinstance(groups, list) and len(groups) == len(ours) else [{}] * len(ours)
        for group, own in zip(groups, ours, strict=True):
            missing = own.keys() - group.keys() - (set() if same_schedule else {"initial_lr"})
            if missing or group["params"] != own["params"] or not isinstance(group.get("fused"), bool | None):
                raise misfit("optimizer_states.param_groups", sorted(missing) or "other parameters", "the model's")
            common = (own.keys() & group.keys()) - {"params", "fused"}  # mixed precision may have been another
            check_state({k: group[k] for k in common}, {k: own[k] for k in common}, "optimizer_states", kinds)
    for config, state in zip(trainer.lr_scheduler_configs, checkpoint["lr_schedulers"], strict=False):
        own = config.scheduler.state_dict()
        shadowing = any(key not in own and hasattr(type(config.scheduler), str(key)) for key in state)
        if shadowing or (same_schedule and state.keys() != own.keys()):
            raise misfit("lr_schedulers", state, f"the state of a {type(config.scheduler).__name__}")
        common = own.keys() & state.keys()
        check_state({k: state[k] for k in common}, {k: own[k] for k in common}, "lr_schedulers", kinds)


def _averaged(trainer: Trainer, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with averaged weights where weights are averaged; of weights alone Lightning saves the others."""
    whole = dict(checkpoint)
    for callback in callbacks_of(trainer, WeightAveraging) if "callbacks" not in checkpoint else []:
        callback.on_save_checkpoint(trainer, trainer.lightning_module, whole)
    return {**checkpoint, "state_dict": whole["state_dict"]}
