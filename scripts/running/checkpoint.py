"""Checkpoint: what is in a checkpoint and beside it, read once, before anything else is done with it."""

from __future__ import annotations

import math
import os
import pickle
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import WeightAveraging
from torch.overrides import TorchFunctionMode

from callbacks.checkpoints.files import DamagedCheckpointError, load_plain, open_intact, previous
from callbacks.checkpoints.progress import epochs_and_batches, trained_epochs
from callbacks.checkpoints.structure import MisfitError, all_finite, check_checkpoint, kind
from callbacks.stop_and_resume import StopAndResume, callbacks_of
from datamodules import CIFAR10DataModule, shapes10, sources
from lightning_modules import AlexNetClassifier
from running.checks import batches_an_epoch
from running.errors import printable, reason, refuse

VERSION = "pytorch-lightning_version"
# What Lightning and we look into at once.
MAPPINGS = "state_dict", "loops", "callbacks", "hyper_parameters", "datamodule_hyper_parameters", StopAndResume.__name__
KINDS: dict[str, type] = {
    **dict.fromkeys(MAPPINGS, dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
    **dict.fromkeys(("epoch", "global_step"), int),
}
# A checkpoint brings its own data settings along, but not where the data lie or what follows from other settings.
LEFT_OUT = {"model": {"_instantiator", "seed"}, "data": {"_instantiator", "seed", "image_size", "root"}}
# What decides which images an epoch has in which order, beside the seed and the number of processes.
OF_EPOCH = ("batch_size", "subset_size", "val_size", "split_seed")
DRAWS = {"normal_", "uniform_", "kaiming_uniform_"}


class Undrawn(TorchFunctionMode):
    """Within it a network is made of whatever lies in memory: for weights that are overwritten at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Leave a tensor that is to be drawn as it is, which comes first, by whatever name."""
        kwargs = kwargs or {}
        return [*args, *kwargs.values()][0] if func.__name__ in DRAWS else func(*args, **kwargs)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that ``fit.py`` wrote.

    Attributes:
        path: The file.
        contents: What it holds, as Lightning wrote it: tensors on the CPU, and plain values.
        digest: The file's SHA-256.
    """

    path: Path
    contents: dict[str, Any]
    digest: str

    @classmethod
    def read(cls, path: Path, flag: str = "--ckpt_path") -> Checkpoint:
        """Read the file, or where it is damaged the one before it, without running any code of its own.

        What can't be used is refused in one line; ``flag`` named it.
        """
        if not path.exists() and not previous(path).is_file():
            refuse(f"{flag}: {path} is no file. Name one, such as logs/alexnet/version_0/checkpoints/best.ckpt.")
        if not str(path).isprintable():  # Lightning prints it as it is
            refuse(f"{flag}: {path}, expected a name that a terminal can show. Rename it.")
        try:
            opened = open_intact(path)
            if opened.wrong is not None:
                print(f"warning: {path}: {opened.wrong}. Taking the one before it, {opened.path}.", file=sys.stderr)
            path = opened.path
            contents = load_plain(opened.contents)
        except DamagedCheckpointError as error:
            refuse(str(error))
        except pickle.UnpicklingError:
            refuse(f"{path}: holds more than tensors and plain values, or is no checkpoint. Use one that fit.py wrote.")
        except Exception as error:  # torch raises many kinds on damaged files
            refuse(f"{path}: can't be read as a checkpoint ({reason(error)}). Use one that fit.py wrote.")
        if not isinstance(contents, dict) or "state_dict" not in contents:
            refuse(f"{path}: has no state_dict. Use a checkpoint that fit.py wrote.")
        for key, wanted in KINDS.items():
            if key in contents and not isinstance(contents[key], wanted):
                wrong = f"{key} is a {type(contents[key]).__name__}, expected a {wanted.__name__}"
                refuse(f"{path}: {wrong}. Use a checkpoint that fit.py wrote.")
        return cls(path, contents, opened.digest)

    @classmethod
    def newest(cls, places: Iterable[Path], where: str) -> Checkpoint:
        """The newest ``last.ckpt`` of several; ``where`` says in a refusal where they were looked for."""
        newest: dict[float, Path] = {}
        for last in places:
            newest |= {path.stat().st_mtime: last for path in (last, previous(last)) if path.is_file()}
        if not newest:
            refuse(f"--ckpt_path last: no run in {where} has a checkpoints/last.ckpt. Name a .ckpt file.")
        checkpoint = cls.read(newest[max(newest)])
        print(f"--ckpt_path last: {checkpoint.path}")
        return checkpoint

    @property
    def state_dict(self) -> dict[str, Any]:
        """The model's tensors by name."""
        state: dict[str, Any] = self.contents["state_dict"]
        return state

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was told about model and data, as a config."""
        found: dict[str, Any] = {}
        for key, name in (("hyper_parameters", "model"), ("datamodule_hyper_parameters", "data")):
            values = self.contents.get(key, {})
            if name == "model" and "seed" in values:
                found["seed_everything"] = values["seed"]
            found[name] = {k: v for k, v in values.items() if k not in LEFT_OUT[name]}
        return found

    @property
    def config_file(self) -> Path:
        """Where the ``config.yaml`` of the run that wrote it is, if it is still there.

        Above its folder, wherever that lies now; of a run that kept its checkpoints elsewhere, in the run's folder.
        """
        above = Path(os.path.abspath(self.path)).parents[1] / "config.yaml"
        folder = self.contents.get(StopAndResume.__name__, {}).get("folder")
        return Path(folder) / "config.yaml" if isinstance(folder, str) and not above.is_file() else above

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """All that its run was told; None where no ``config.yaml`` says it."""
        try:
            config = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return None
        groups = [config.get(name) for name in ("trainer", "model", "data")] if isinstance(config, dict) else [None]
        return config if all(isinstance(group, dict) for group in groups) else None

    @property
    def statistics(self) -> dict[str, Any] | None:
        """The DataModule's state: mean, spread and axes of the training images; None where there is none."""
        return self.contents.get("CIFAR10DataModule")

    def network(self) -> AlexNetClassifier:
        """Its network with its weights, on the CPU and in evaluation mode; to be called after ``check_settings``."""
        with Undrawn():
            model = AlexNetClassifier(**{**self.settings["model"], "compile": False})
        model.load_state_dict(self.state_dict)  # all of them, or it raises
        return model.eval()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of its data, in the order of the labels; of an earlier version's checkpoint as its settings say them.

        ``0``, ``1``, ... where nothing says them, or not as many as the network has outputs.
        """
        outputs = self.settings["model"].get("num_classes", 10)
        source = self.settings["data"].get("source")
        told = {"cifar10": sources.CLASSES, "shapes10": shapes10.CLASSES}.get(source, ())
        names = tuple((self.statistics or {}).get("class_names", told))
        return names if len(names) == outputs else tuple(map(str, range(outputs)))

    @property
    def progress(self) -> tuple[int, int, int]:
        """Whole epochs that it was trained for, batches of the next one, and optimiser steps in all.

        A checkpoint of weights alone, which no training can go on from, is refused in one line.
        """
        if "optimizer_states" not in self.contents or "fit_loop" not in self.contents.get("loops", {}):
            refuse(
                f"--ckpt_path: {self.path} holds weights only, training can't go on from it. Use the run's last.ckpt."
            )
        return *epochs_and_batches(self.contents), self.contents.get("global_step", 0)

    @property
    def epochs(self) -> int | None:
        """How many epochs it was trained for; None where it does not say."""
        return trained_epochs(self.contents)

    @property
    def best(self) -> Path:
        """Where the run's best weights are, beside it."""
        return self.path.with_name("best.ckpt")

    def check_complete(self) -> None:
        """Refuse what does not say how its network was made, and what becomes of an image before it."""
        if not self.settings["data"] or not self.settings["model"] or self.statistics is None:
            refuse(f"{self.path}: does not say what it does with an image. Use a checkpoint that fit.py wrote.")

    def check_fits(
        self,
        model: torch.nn.Module,
        trainer: Any = None,
        remedy: str = "Leave out --model flags and configs that change the network, or use another checkpoint.",
    ) -> None:
        """Refuse a checkpoint whose tensors are not the model's, or its state not the trainer's, naming the first."""
        theirs, ours = self.state_dict, model.state_dict()
        for key in [*ours, *theirs]:
            shapes = [kind(state[key]) if key in state else "missing" for state in (theirs, ours)]
            if shapes[0] != shapes[1]:
                refuse(f"{self.path}: {key} is {shapes[0]} in the checkpoint and {shapes[1]} in the model. {remedy}")
            if not all_finite(theirs[key]):
                refuse(f"{self.path}: {key} is NaN or infinite, expected finite weights. Use another checkpoint.")
        if trainer is not None:
            try:
                check_checkpoint(self.contents, trainer, [*model.parameters()])
            except MisfitError as error:
                refuse(f"{self.path}: {error}")

    def check_probabilities(self, probabilities: torch.Tensor) -> None:
        """Refuse a checkpoint of which came NaN, which would be ranked like numbers."""
        if not probabilities.isfinite().all():
            refuse(f"{self.path}: probabilities are NaN, expected finite ones. Use another checkpoint.")

    def check_settings(self) -> None:
        """Refuse settings that are not those of its weights, or none at all, before anything is made of them."""
        try:
            settings, version = self.settings, str(self.contents.setdefault(VERSION, "2.6.6"))
            yaml.safe_dump(settings)  # plain values
            if not re.fullmatch(r"2(\.\d+){2}\w*(\.\w+)?", version):
                raise ValueError(f"{VERSION} {version}, expected 2.6.6 or the like")
            for name, value in [*settings["model"].items(), *settings["data"].items()]:
                if isinstance(value, int | float) and not abs(value) <= 2**32:
                    raise ValueError(f"{name}: {value}, expected at most {2**32}")
            with torch.device("meta"), Undrawn():  # shapes without numbers, for which there may be no memory
                model = AlexNetClassifier(**{**settings["model"], "compile": False})
            data = CIFAR10DataModule(**settings["data"], image_size=model.net.image_size)
            if "CIFAR10DataModule" in self.contents:
                data.load_state_dict(self.contents["CIFAR10DataModule"])
        except Exception as error:  # of any kind, whatever its values make of it
            wrong = f"its settings are not this version's ({reason(error)})"
            refuse(f"{self.path}: {wrong}. Use a checkpoint of this version.")
        if settings["model"]:  # else the command line says what they fit
            self.check_fits(model, remedy="Its settings make another network. Use a checkpoint of this version.")


def check_resume(checkpoint: Checkpoint, trainer: Any, datamodule: CIFAR10DataModule, model: AlexNetClassifier) -> None:
    """Refuse to go on from a checkpoint where that can't come to the unbroken run's end."""
    epochs, done, steps = checkpoint.progress
    path, limit = checkpoint.path, trainer.max_epochs or -1
    if 0 <= limit < epochs:
        refuse(
            f"--trainer.max_epochs: {limit}, but {path} was trained for {epochs} epochs. Raise it, or test that run: "
            f"python scripts/fit.py test --ckpt_path {checkpoint.best}"
        )
    if 0 <= limit == epochs or 0 <= trainer.max_steps <= steps:
        print(f"nothing left to train: {path} was trained for {epochs} epochs, {steps} steps. On to the test.")
        return
    if "current_model_state" in checkpoint.contents and not callbacks_of(trainer, WeightAveraging):
        refuse(
            f"--trainer.callbacks: none averages weights, as in {path}, whose training would go on from the average. "
            "Add the one that it had."
        )
    _check_images(checkpoint, trainer, datamodule, within_epoch=done > 0)
    for schedule in checkpoint.contents.get("lr_schedulers", []) if model.schedule == "one_cycle" else []:
        left = steps_left(trainer, batches_an_epoch(trainer, datamodule), epochs, done, steps)
        if "total_steps" in schedule and schedule["last_epoch"] + left > schedule["total_steps"]:
            refuse(
                f"--trainer.max_epochs: {left} more steps are more than the {schedule['total_steps']} that the "
                f"one_cycle schedule in {path} was laid out for. Leave max_epochs and --data as they were, or choose "
                "--model.schedule constant."
            )


def _check_images(checkpoint: Checkpoint, trainer: Any, datamodule: CIFAR10DataModule, within_epoch: bool) -> None:
    """Say that a run goes on with other images, or other draws of them; within an epoch refuse it."""
    run, kept = checkpoint.settings, checkpoint.contents.get(StopAndResume.__name__, {})
    now = {name: getattr(datamodule, name) for name in OF_EPOCH}
    pairs = {f"--data.{name}": (run["data"].get(name, now[name]), now[name]) for name in OF_EPOCH}
    pairs["--seed_everything"] = run.get("seed_everything", datamodule.seed), datamodule.seed
    pairs["--trainer.devices"] = kept.get("processes", trainer.world_size), trainer.world_size
    for flag, (was, is_now) in pairs.items() if within_epoch else []:
        if was != is_now:
            begun = f"{checkpoint.path} was stopped within an epoch that began with {was}"
            refuse(f"{flag}: {is_now}, but {begun}. Leave it as it was.")
    then = checkpoint.statistics
    if then and any(not torch.allclose(then[k], getattr(datamodule.statistics, k), rtol=1e-5) for k in ("mean", "std")):
        other = f"{checkpoint.path} was trained on other images than those here"
        if within_epoch:
            refuse(f"--data.root: {other}, and stopped within an epoch. Give it those.")
        print(printable(f"warning: {other}: a run of two halves."), file=sys.stderr)


def steps_left(trainer: Any, batches: int, epochs: int, done: int, steps: int) -> int:
    """Optimiser steps that the trainer's limits leave, after so many epochs, batches of the next one, and steps."""
    every = trainer.accumulate_grad_batches
    limits = [trainer.max_steps - steps] if trainer.max_steps >= 0 else []
    if (trainer.max_epochs or -1) >= 0:
        limits.append((trainer.max_epochs - epochs) * math.ceil(batches / every) - math.ceil(done / every))
    return min(limits, default=0)
