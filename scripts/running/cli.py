"""What is around ``fit.py``'s experiment: subcommands, defaults, settings from checkpoints, one-line refusals."""

from __future__ import annotations

import logging
import math
import pickle
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
import yaml
from lightning import Callback, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.checkpoints.files import (
    CheckpointError,
    DamagedCheckpointError,
    NotFiniteError,
    damage,
    previous,
    sound_checkpoint,
)
from callbacks.checkpoints.io import DurableCheckpointIO
from callbacks.checkpoints.progress import epochs_and_batches
from callbacks.stop_and_resume import StopAndResume
from callbacks.stop_on_divergence import StopOnDivergence, account
from datamodules import CIFAR10DataModule, sources
from running.errors import refuse
from running.memory import keep_memory
from running.report import batches_an_epoch

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SUBCOMMANDS = ("fit", "validate", "test")
# A checkpoint brings its own data settings along, but not where the data lie or what follows from other settings.
NOT_FROM_CHECKPOINTS = {"model": {"_instantiator", "seed"}, "data": {"_instantiator", "seed", "image_size", "root"}}


def quieten() -> None:
    """Leave out what Lightning says on every run and nobody can do anything about."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # batches are gathered, not loaded
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own use of a deprecated name
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # ours is: see EpochSampler
    warnings.filterwarnings("ignore", ".*The dirpath has changed.*")  # what was best is taken over: see StopAndResume
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning")
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    log.addFilter(lambda record: "litlogger" not in record.getMessage() and "TPU available" not in record.getMessage())


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn refusals of settings and data into one line; for use before training starts, never around it."""
    try:
        yield
    except (ValueError, OSError) as error:
        refuse(str(error))
    except (MisconfigurationException, ModuleNotFoundError) as error:  # Lightning's own, such as no GPU or no torch_xla
        refuse(f"--trainer: {str(error).rstrip('. ')}. See `python scripts/fit.py fit --help` for what there is.")


@contextmanager
def one_line_failures(trainer: Trainer) -> Iterator[None]:
    """Say in one line why training could not go on: exit status 3 for divergence, 1 for a checkpoint's full disk."""
    try:
        yield
    except NotFiniteError as error:
        if not trainer.is_global_zero:
            raise SystemExit(3) from None
        refuse(account(trainer, str(error)), status=3)
    except CheckpointError as error:
        refuse(str(error), status=1)


class FitParser(LightningArgumentParser):
    """jsonargparse's parser with its complaints on one line."""

    flags: ClassVar[dict[Any, str]] = {}  # ``nearest_neighbours`` of NearestNeighbours, and so on

    def add_lightning_class_args(self, lightning_class: Any, nested_key: str, *args: Any, **kwargs: Any) -> list[str]:
        """Lightning's, remembered for :func:`under_its_flag`."""
        self.flags[lightning_class] = nested_key
        return super().add_lightning_class_args(lightning_class, nested_key, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """A misspelt key, a value of the wrong type, a missing config file."""
        message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message)
        message = re.sub(r"^unrecognized arguments: (.*)", r"\1: unknown", message)
        message = re.sub(r"^argument subcommand: invalid choice: '([^']*)'", r"\1: no subcommand", message)
        message = re.sub(r"^(Problems parsing|Unexpected) config:", r"--config: can't be understood,", message)
        refuse(f"{message.rstrip('. ')}. See `python scripts/fit.py --help` for what there is.")


def under_its_flag(error: ValueError) -> str:
    """What a class said about an argument, after the flag that set it: AlexNet does not know that it is ``--model``."""
    message = str(error)
    if message.startswith("--"):
        return message
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = [FitParser.flags.get(type(frame.f_locals.get("self"))) for frame in frames]
    flag = next((owner for owner in reversed(owners) if owner), "trainer")
    if not message.endswith("."):
        message += ". See `python scripts/fit.py fit --help` for what there is."
    return f"--{flag}.{message}" if message.partition(": ")[0].isidentifier() else f"--{flag}: {message}"


class ExperimentCLI(LightningCLI):
    """LightningCLI with ``fit`` as the default subcommand and ``configs/default.yaml`` as the default config."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # DDP starts its other processes from sys.argv, so what is meant has to be written there.
        if len(sys.argv) == 1 or sys.argv[1].startswith("-"):
            sys.argv.insert(1, "fit")
        quieten()
        default = {"default_config_files": [str(CONFIGS / "default.yaml")]}
        super().__init__(
            *args,
            parser_class=FitParser,
            parser_kwargs={name: dict(default) for name in SUBCOMMANDS},
            auto_configure_optimizers=False,
            **kwargs,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, less ``predict``: there are no images without labels here."""
        return {name: LightningCLI.subcommands()[name] for name in SUBCOMMANDS}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """A plain whole number as the seed: model and data are given the same."""
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of all of the run's random numbers.")
        parser.add_argument(
            "--keep_memory", type=bool, default=True, help="Keep freed memory in the process (Linux): a faster step."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; where there is a checkpoint, again, with its settings between the defaults and the command line."""
        try:
            super().parse_arguments(parser, args)
        except UnicodeDecodeError as error:
            refuse(f"--config: {error}. Give a YAML file.")
        name = self.config.subcommand
        ckpt_path = self.config[name].ckpt_path
        if ckpt_path is None:
            if name != "fit":
                refuse(f"--ckpt_path: `{name}` without a checkpoint would score random weights. Name a .ckpt file.")
            return
        path = newest_checkpoint(self.config[name]) if ckpt_path == "last" else whole_checkpoint(Path(ckpt_path))
        settings = checkpoint_settings(path)
        print(f"model and data settings come from {path}; -c and flags override them")
        words = args if args is not None else sys.argv[1:]
        self.config = parser.parse_args([words[0], "-c", yaml.safe_dump(settings), *words[1:]])
        self.config[name].ckpt_path = str(path)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning's version lets a checkpoint override flags without a word; ours is in parse_arguments."""

    def _set_seed(self) -> None:
        """Lightning's, for a seed that numpy takes."""
        seed = self.config[self.subcommand].seed_everything
        if not 0 <= seed < 2**32:
            refuse(f"--seed_everything: {seed} is out of range. Choose 0 to {2**32 - 1}.")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Settle which data are meant, once, so that the run's name, its config and its checkpoints all say it."""
        config = self.config[self.subcommand]
        if config.keep_memory:
            keep_memory()
        with one_line_errors():
            layout = sources.resolve_source(Path(config.data.root), config.data.source, config.data.download)
        config.data.source = "cifar10" if layout else "shapes10"
        logger = config.trainer.get("logger")
        if layout is None and hasattr(logger, "init_args") and not str(logger.init_args.name).endswith("-shapes10"):
            logger.init_args.name = f"{logger.init_args.name}-shapes10"

    def instantiate_classes(self) -> None:
        """Build data, model and trainer."""
        with one_line_errors():
            try:
                super().instantiate_classes()
            except ValueError as error:
                raise ValueError(under_its_flag(error)) from error
            except RuntimeError as error:
                if "allocate memory" not in str(error):
                    raise
                raise ValueError("--model: more weights than memory. Choose a smaller --model.image_size.") from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Give every run what it takes to survive, beside what the user chose."""
        plugins = config.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(DurableCheckpointIO())
        # First: at the end of training signals stop at once again, before callbacks take their time to look.
        config["callbacks"] = [StopAndResume(), StopOnDivergence(), *(config.get("callbacks") or [])]
        return super()._instantiate_trainer({**config, "plugins": plugins}, callbacks)


def newest_checkpoint(config: Any) -> Path:
    """The newest whole ``last.ckpt`` of the newest run under the config's name, with or without ``-shapes10``."""
    logger = config.trainer.get("logger")
    if hasattr(logger, "init_args"):
        name, folder = str(logger.init_args.get("name")), Path(str(logger.init_args.save_dir))
        runs = [run for n in (name, f"{name}-shapes10") for run in (folder / n).glob("*") if run.is_dir()]
        where = f"{folder / name}/ or {folder / name}-shapes10/"
    else:  # without a logger there are no versions
        runs = [Path(str(config.trainer.get("default_root_dir") or "."))]
        where = f"{runs[0]}/"
    newest: dict[float, Path] = {}
    for run in runs:
        last = run / "checkpoints" / "last.ckpt"
        for path in (last, previous(last)):
            if path.is_file():
                newest[path.stat().st_mtime] = last
    if not newest:
        refuse(f"--ckpt_path last: no run in {where} has a checkpoints/last.ckpt. Name a .ckpt file.")
    path = whole_checkpoint(newest[max(newest)])
    print(f"--ckpt_path last: {path}")
    return path


def whole_checkpoint(path: Path) -> Path:
    """The checkpoint, or where it is damaged the one before it; or a refusal."""
    if damage(path) == "missing" and not previous(path).is_file():
        return path  # load_checkpoint has a message of its own
    try:
        sound, wrong = sound_checkpoint(path)
    except DamagedCheckpointError as error:
        refuse(str(error))
    if wrong is not None:
        print(f"warning: {path}: {wrong}. Taking the one before it, {sound}.", file=sys.stderr)
    return sound


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's contents without running any code of its own, or refuse it in one line."""
    if not path.is_file():
        refuse(f"--ckpt_path: {path} is no file. Name one, such as logs/alexnet/version_0/checkpoints/best.ckpt.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        refuse(f"{path}: holds more than tensors and plain values, or is no checkpoint. Use one that fit.py wrote.")
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        refuse(f"{path}: can't be read as a checkpoint ({reason}). Use one that fit.py wrote.")
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        refuse(f"{path}: has no state_dict. Use a checkpoint that fit.py wrote.")
    return checkpoint


def checkpoint_settings(path: Path) -> dict[str, Any]:
    """The model's and the data's settings that a checkpoint was trained with, as a config."""
    checkpoint = load_checkpoint(path)
    settings: dict[str, Any] = {}
    for key, name in (("hyper_parameters", "model"), ("datamodule_hyper_parameters", "data")):
        values = checkpoint.get(key, {})
        if name == "model" and "seed" in values:
            settings["seed_everything"] = values["seed"]
        settings[name] = {k: v for k, v in values.items() if k not in NOT_FROM_CHECKPOINTS[name]}
    return settings


def check_checkpoint(path: Path, model: torch.nn.Module) -> None:
    """Refuse a checkpoint whose tensors are not the model's, naming the first that differs."""
    theirs, ours = load_checkpoint(path)["state_dict"], model.state_dict()
    for key in [*ours, *theirs]:
        shapes = [tuple(state[key].shape) if key in state else "missing" for state in (theirs, ours)]
        if shapes[0] != shapes[1]:
            refuse(
                f"{path}: {key} is {shapes[0]} in the checkpoint and {shapes[1]} in the model. "
                "Leave out --model flags and configs that change the network, or use another checkpoint."
            )


def nothing_left(path: Path, trainer: Trainer, datamodule: CIFAR10DataModule) -> bool:
    """Whether a checkpoint's run is finished by the trainer's limits, which is then said. Refuses what can't go on."""
    checkpoint = load_checkpoint(path)
    if "optimizer_states" not in checkpoint or "fit_loop" not in checkpoint.get("loops", {}):
        refuse(f"--ckpt_path: {path} holds weights only, training can't go on from it. Use the run's last.ckpt.")
    epochs, done = epochs_and_batches(checkpoint)
    steps, limit = checkpoint.get("global_step", 0), trainer.max_epochs or -1
    if 0 <= limit <= epochs or 0 <= trainer.max_steps <= steps:
        print(
            f"nothing left to train: {path} was trained for {epochs} epochs, {steps} steps. Raise "
            "--trainer.max_epochs, or test what it came to: python scripts/fit.py test --ckpt_path "
            f"{path.with_name('best.ckpt')}"
        )
        return True
    batch_size = checkpoint.get("datamodule_hyper_parameters", {}).get("batch_size", datamodule.batch_size)
    if done and batch_size != datamodule.batch_size:
        refuse(
            f"--data.batch_size: {datamodule.batch_size}, but {path} was stopped within an epoch of batches of "
            f"{batch_size}. Leave it as it was."
        )
    for schedule in checkpoint.get("lr_schedulers", []):
        left = steps_left(trainer, batches_an_epoch(trainer, datamodule), epochs, done, steps)
        if "total_steps" in schedule and schedule["last_epoch"] + left > schedule["total_steps"]:
            refuse(
                f"--trainer.max_epochs: {left} more steps are more than the {schedule['total_steps']} that the "
                f"one_cycle schedule in {path} was laid out for. Leave max_epochs and --data as they were, or choose "
                "--model.schedule constant."
            )
    return False


def steps_left(trainer: Trainer, batches: int, epochs: int, done: int, steps: int) -> int:
    """Optimiser steps that the trainer's limits leave, after so many epochs, batches of the next one, and steps."""
    every = trainer.accumulate_grad_batches
    limits = [trainer.max_steps - steps] if trainer.max_steps >= 0 else []
    if (trainer.max_epochs or -1) >= 0:
        limits.append((trainer.max_epochs - epochs) * math.ceil(batches / every) - done // every)  # type: ignore[operator]
    return min(limits, default=0)
