"""The command line around ``fit.py``'s experiment: subcommands, defaults, settings from checkpoints, refusals."""

from __future__ import annotations

import functools
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning import Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import LOOKS
from callbacks.checkpoints.files import CheckpointError, NotFiniteError
from callbacks.checkpoints.io import DurableCheckpointIO
from callbacks.run_history import RunHistory
from callbacks.stop_and_resume import StopAndResume
from callbacks.stop_on_divergence import StopOnDivergence, account
from datamodules import CIFAR10DataModule, sources
from lightning_modules import AlexNetClassifier
from running.checkpoint import Checkpoint
from running.errors import argument_errors, flagged, refuse
from running.memory import keep_memory

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SUBCOMMANDS = ("fit", "validate", "test")
HELP = "See `python scripts/fit.py fit --help` for what there is."


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
        with argument_errors("--data."):
            yield
    except (MisconfigurationException, ModuleNotFoundError) as error:  # Lightning's own, such as no GPU or no torch_xla
        refuse(f"--trainer: {str(error).rstrip('. ')}. {HELP}")


@contextmanager
def one_line_failures(trainer: Trainer) -> Iterator[None]:
    """Say in one line why training could not go on: exit status 3 for divergence, 1 for a checkpoint's full disk."""
    try:
        yield
    except NotFiniteError as error:
        if not trainer.is_global_zero:
            raise SystemExit(3) from None
        refuse(flagged(account(trainer, str(error)), "--model."), status=3)
    except CheckpointError as error:
        refuse(str(error), status=1)


def under_flag(flag: str, instantiate: Callable[..., Any] = lambda class_type, *a, **k: class_type(*a, **k)) -> Any:
    """Make what a class says about its argument name the flag: AlexNet does not know that it is ``--model``."""

    @functools.wraps(instantiate)
    def named(class_type: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return instantiate(class_type, *args, **kwargs)
        except ValueError as error:
            raise ValueError(flagged(str(error), f"--{flag}.")) from error

    return named


class FitParser(LightningArgumentParser):
    """jsonargparse's parser with its complaints on one line, and with the classes' own under their flags."""

    def add_instantiator(self, instantiator: Any, class_type: type, *args: Any, **kwargs: Any) -> None:
        flag = {AlexNetClassifier: "model", CIFAR10DataModule: "data"}.get(class_type)
        super().add_instantiator(under_flag(flag, instantiator) if flag else instantiator, class_type, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """A misspelt key, a value of the wrong type, a missing config file."""
        message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message)
        message = re.sub(r"^unrecognized arguments: (.*)", r"\1: unknown", message)
        message = re.sub(r"^argument subcommand: invalid choice: '([^']*)'", r"\1: no subcommand", message)
        message = re.sub(r"^(Problems parsing|Unexpected) config:", r"--config: can't be understood,", message)
        refuse(f"{message.rstrip('. ')}. See `python scripts/fit.py --help` for what there is.")


class ExperimentCLI(LightningCLI):
    """LightningCLI with ``fit`` as the default subcommand and ``configs/default.yaml`` as the default config.

    Attributes:
        checkpoint: What ``--ckpt_path`` names, read once; None without it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # DDP starts its other processes from sys.argv, so what is meant has to be written there.
        if len(sys.argv) == 1 or sys.argv[1].startswith("-"):
            sys.argv.insert(1, "fit")
        quieten()
        self.checkpoint: Checkpoint | None = None
        default = {"default_config_files": [str(CONFIGS / "default.yaml")]}
        kwargs |= {"parser_class": FitParser, "parser_kwargs": {name: dict(default) for name in SUBCOMMANDS}}
        super().__init__(*args, **{"auto_configure_optimizers": False, **kwargs})

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
        parser.add_argument(
            "--looks", type=bool, default=True, help="All that looks at the run; one's own `enabled` wins over it."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; where there is a checkpoint, again, with its settings between the defaults and the command line."""
        try:
            super().parse_arguments(parser, args)
        except UnicodeDecodeError as error:
            refuse(f"--config: {error}. Give a YAML file.")
        name = self.config.subcommand
        if not 0 <= self.config[name].seed_everything < 2**32:  # what numpy takes
            refuse(f"--seed_everything: {self.config[name].seed_everything} is out of range. Choose 0 to {2**32 - 1}.")
        ckpt_path = self.config[name].ckpt_path
        if ckpt_path is None:
            if name != "fit":
                refuse(f"--ckpt_path: `{name}` without a checkpoint would score random weights. Name a .ckpt file.")
            return
        self.checkpoint = newest_run(self.config[name]) if ckpt_path == "last" else Checkpoint.read(Path(ckpt_path))
        print(f"model and data settings come from {self.checkpoint.path}; -c and flags override them")
        words = args if args is not None else sys.argv[1:]
        self.config = parser.parse_args([words[0], "-c", yaml.safe_dump(self.checkpoint.settings), *words[1:]])
        self.config[name].ckpt_path = None  # Lightning would let the checkpoint's settings override flags

    @property
    def settings(self) -> Any:
        """The run's own, without the other subcommands'."""
        return self.config[self.subcommand]

    @property
    def best(self) -> ModelCheckpoint:
        """What chooses the checkpoint that is tested."""
        return self.config_init[self.subcommand].best_checkpoint

    def before_instantiate_classes(self) -> None:
        """Settle which data are meant, once, so that the run's name, its config and its checkpoints all say it."""
        config = self.settings
        if self.checkpoint is not None:
            config.ckpt_path = str(self.checkpoint.path)
        for key, look in LOOKS.items():
            self.parser.add_instantiator(under_flag(key), look, subclasses=False)
            if config[key].enabled is None:
                config[key].enabled = config.looks
        if config.keep_memory:
            keep_memory()
        with one_line_errors():
            layout = sources.resolve_source(Path(config.data.root), config.data.source, config.data.download)
        config.data.source = "cifar10" if layout else "shapes10"
        logger = config.trainer.get("logger")
        if layout is None and hasattr(logger, "init_args") and not str(logger.init_args.name).endswith("-shapes10"):
            logger.init_args.name = f"{logger.init_args.name}-shapes10"

    def instantiate_classes(self) -> None:
        with one_line_errors():
            try:
                super().instantiate_classes()
            except ValueError as error:
                raise ValueError(str(error) if str(error).startswith("--") else f"--trainer: {error}") from error
            except RuntimeError as error:
                if "allocate memory" not in str(error):
                    raise
                raise ValueError("--model: more weights than memory. Choose a smaller --model.image_size.") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give every run what it takes to survive, beside what the user chose."""
        chosen = self.config_init[self.subcommand].trainer
        plugins, callbacks = (
            list(given) if isinstance(given, (list, tuple)) else [given] if given else []
            for given in (chosen.plugins, chosen.callbacks)
        )
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            read = (self.checkpoint.path, self.checkpoint.contents) if self.checkpoint else None
            plugins.append(DurableCheckpointIO(read))
        # First: at the end of training signals stop at once again, before callbacks take their time to look.
        self.history = RunHistory()
        first = [StopAndResume(), StopOnDivergence(), self.history]
        return super().instantiate_trainer(callbacks=[*first, *callbacks], plugins=plugins, **kwargs)


def newest_run(config: Any) -> Checkpoint:
    """The newest whole ``last.ckpt`` of the newest run under the config's name, with or without ``-shapes10``."""
    logger = config.trainer.get("logger")
    if not hasattr(logger, "init_args"):  # without a logger there are no versions
        folder = Path(str(config.trainer.get("default_root_dir") or "."))
        return Checkpoint.newest([folder], f"{folder}/")
    name, folder = str(logger.init_args.get("name")), Path(str(logger.init_args.save_dir))
    runs = [run for n in (name, f"{name}-shapes10") for run in (folder / n).glob("*") if run.is_dir()]
    return Checkpoint.newest(runs, f"{folder / name}/ or {folder / name}-shapes10/")
