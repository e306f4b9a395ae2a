"""The command line around ``fit.py``'s experiment: subcommands, defaults, settings from checkpoints, refusals."""

from __future__ import annotations

import copy
import errno
import functools
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning import Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder, ModelCheckpoint, ModelSummary
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, instantiate_class
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import LOOKS
from callbacks.base import run_folder
from callbacks.checkpoints.files import CheckpointError, NotFiniteError, write_whole
from callbacks.checkpoints.io import DurableCheckpointIO
from callbacks.checkpoints.structure import MisfitError
from callbacks.run_history import RunHistory
from callbacks.slurm import slurm_job
from callbacks.stop_and_resume import StopAndResume, callbacks_of
from callbacks.stop_on_divergence import StopOnDivergence, account
from datamodules import CIFAR10DataModule, sources
from lightning_modules import AlexNetClassifier
from running.checkpoint import Checkpoint
from running.checks import check_nothing_in_the_way, check_processes
from running.errors import argument_errors, flagged, printable, refuse
from running.flags import nearest
from running.loggers import go_on_without
from running.memory import is_out_of_memory, keep_memory
from running.settings import (
    check_schedule,
    logger_configs,
    name_stand_in,
    overridden,
    run_settings,
    settle_ids,
    settle_job,
    settle_places,
    settle_precision,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SUBCOMMANDS = ("fit", "validate", "test", "predict")
SEE = "See `python scripts/fit.py fit --help` for what there is."


def quieten() -> None:
    """Leave out what Lightning says on every run and nobody can do anything about."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # batches are gathered, not loaded
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own use of a deprecated name
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # ours is: see EpochSampler
    warnings.filterwarnings("ignore", ".*The dirpath has changed.*")  # what was best is taken over: see StopAndResume
    warnings.filterwarnings("ignore", ".*was called before the ``update`` method.*")  # it was, before the run went on
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
        refuse(f"--trainer: {str(error).rstrip('. ')}. {SEE}")


@contextmanager
def one_line_failures(trainer: Trainer) -> Iterator[None]:
    """Say in one line why training could not go on: exit status 3 for divergence, 1 for memory and a full disk."""
    try:
        yield
    except NotFiniteError as error:
        if not trainer.is_global_zero:
            raise SystemExit(3) from None
        refuse(flagged(account(trainer, str(error)), "--model."), status=3)
    except CheckpointError as error:
        refuse(str(error), status=1)
    except OSError as error:  # of config.yaml, or as a logger begins: nothing is trained yet
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        place = error.filename or run_folder(trainer)
        refuse(f"{place}: can't be written ({error.strerror}), expected some space. Free some.", status=1)
    except Exception as error:
        if is_out_of_memory(error):
            if trainer.is_global_zero:
                wrong = f"memory ran out after step {trainer.global_step}, expected batches that fit"
                refuse(f"--data.batch_size: {wrong}. Lower it, or --model.image_size.", status=1)
            raise SystemExit(1) from None
        if not trainer.ckpt_path or not any(callback.resuming for callback in callbacks_of(trainer, StopAndResume)):
            raise
        wrong = f"can't be taken over ({type(error).__name__}: {error}). Use one that fit.py wrote."
        refuse(f"{trainer.ckpt_path}: {error if isinstance(error, MisfitError) else wrong}")


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

    def save(self, cfg: Any, path: Any, *args: Any, skip_none: bool = True, **kwargs: Any) -> None:
        """As UTF-8: jsonargparse writes, and reads, in what the system takes for its encoding."""
        write_whole(Path(path), self.dump(cfg, skip_none=skip_none))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """A misspelt key, a value of the wrong type, a missing config file."""
        message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message)
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            meant = nearest(unknown[1], re.findall(r"--[\w.]+", self.format_help()))
            message = f"{unknown[1]}: unknown{f', perhaps {meant} was meant' if meant else ''}"
        message = re.sub(r"^argument subcommand: invalid choice: '([^']*)'", r"\1: no subcommand", message)
        message = re.sub(r"^(Problems parsing|Unexpected) config:", r"--config: can't be understood,", message)
        refuse(f"{message.rstrip('. ')}. {SEE}")


class ExperimentTrainer(Trainer):
    """Lightning's, with one more precision, and no trial of validation before the first step.

    Args:
        precision: ``auto``, which is settled before there is a trainer: ``bf16-mixed`` where the GPU or the CPU has
            instructions for it (AVX512-BF16, AMX), else ``32-true``; or one of Lightning's.
        num_sanity_val_steps: Batches of validation before the first step, which begins a second later for two.
        kwargs: Lightning's.
    """

    def __init__(
        self, precision: int | str | None = "auto", num_sanity_val_steps: int | None = 0, **kwargs: Any
    ) -> None:
        super().__init__(precision=precision, num_sanity_val_steps=num_sanity_val_steps, **kwargs)  # type: ignore[arg-type]

    @property
    def log_dir(self) -> str:
        """The run's own folder, whatever the logger; Lightning's is one for all runs with any but its own two."""
        return str(run_folder(self))


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
        kwargs |= {
            "trainer_class": ExperimentTrainer,
            "parser_class": FitParser,
            "parser_kwargs": {name: dict(default) for name in self.subcommands()},
        }
        super().__init__(
            *args, **{"auto_configure_optimizers": False, "save_config_kwargs": {"overwrite": True}, **kwargs}
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's; the one that is meant is enough."""
        meant = [name for name in SUBCOMMANDS if name in sys.argv[1:2]]
        return {name: LightningCLI.subcommands()[name] for name in meant or SUBCOMMANDS}

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
        """Parse; where there is a checkpoint, again, with its run's settings before the command line."""
        subcommand, *words = found_configs(sys.argv[1:] if args is None else args)
        self.config = parse(parser, [subcommand, *words])
        name = self.config.subcommand
        if not 0 <= self.config[name].seed_everything < 2**32:  # what numpy takes
            seed = self.config[name].seed_everything
            refuse(f"--seed_everything: {seed} is out of range. Choose 0 to {2**32 - 1}.")
        if name == "predict" and not self.config[name].data.predict_folder:
            refuse("--data.predict_folder: none, expected a folder of pictures. Name one.")
        ckpt_path = self.config[name].ckpt_path or requeued(self.config[name], name)
        if ckpt_path is not None:
            if ckpt_path == "last":
                self.checkpoint = Checkpoint.newest(*last_checkpoints(self.config[name]))
            else:
                self.checkpoint = Checkpoint.read(Path(ckpt_path))
            self.checkpoint.check_settings()
            self._parse_again(parser, self.checkpoint, subcommand, words)
        elif name != "fit":
            refuse(f"--ckpt_path: `{name}` without a checkpoint would score random weights. Name a .ckpt file.")

    def _parse_again(
        self, parser: LightningArgumentParser, checkpoint: Checkpoint, subcommand: str, words: list[str]
    ) -> None:
        """Take over a checkpoint's settings, beneath those of the command line, and say which are overridden."""
        name = self.config.subcommand
        run = run_settings(checkpoint, name)
        dropped: Any = None
        if self.config[name].trainer.callbacks:  # the command's own, which `callbacks+` would only add to the run's
            dropped = run.get("trainer", {}).pop("callbacks", None)
        self.config = parse(parser, [subcommand, "-c", yaml.safe_dump(run), *words])
        self.config[name].ckpt_path = None  # Lightning would let the checkpoint's settings override flags
        now = yaml.safe_load(parser.dump(self.config, skip_none=False, format="yaml"))[name]
        said = f"model and data settings come from {checkpoint.path}"
        if name == "fit" and checkpoint.config:
            said = f"settings come from {checkpoint.config_file}"
        elif name == "fit":
            missing = f"{checkpoint.config_file}: missing or no config, expected the settings of its run's trainer"
            epochs = now["trainer"]["max_epochs"]
            print(printable(f"warning: {missing}. Those of now are taken: {epochs} epochs."), file=sys.stderr)
        changes = overridden(run, now)
        if dropped and dropped != now["trainer"]["callbacks"]:
            changes["trainer.callbacks"] = dropped, now["trainer"]["callbacks"]
        if name == "fit":
            with one_line_errors():
                check_schedule(changes, now["model"]["schedule"])
        listed = ", ".join(f"--{key} {value} (was {was})" for key, (was, value) in changes.items())
        print(printable(f"{said}; overridden: {listed}" if listed else f"{said}; -c and flags override them"))

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
        if re.search("_(spawn|fork|notebook)", str(config.trainer.strategy)):
            forked = f"--trainer.strategy: {config.trainer.strategy}, whose processes take what can't be sent to them"
            refuse(f"{forked}. Choose ddp.")
        settle_precision(config)
        if config.keep_memory:
            keep_memory()
        if self.subcommand != "predict":  # whose pictures are the user's
            with one_line_errors():
                layout = sources.resolve_source(Path(config.data.root), config.data.source, config.data.download)
            config.data.source = "cifar10" if layout else "shapes10"
        if config.data.source == "shapes10":
            name_stand_in(config)
        settle_ids(config)

    def instantiate_classes(self) -> None:
        with one_line_errors():
            try:
                super().instantiate_classes()
            except ValueError as error:
                message = str(error)
                if missing := re.search(r"given class_path '([\w.]+)'.*Requirement '([\w-]+)", message, re.DOTALL):
                    kind, package = missing[1].rpartition(".")[2], missing[2]
                    message = f"{kind} needs {package}, which is not there. Run pip install {package}, or leave it out."
                raise ValueError(message if message.startswith("--") else f"--trainer: {message}") from error
            except RuntimeError as error:
                if is_out_of_memory(error):
                    memory = "--model: more weights than memory. Choose a smaller --model.image_size."
                    raise ValueError(memory) from error
                if "stateful callback" not in str(error):
                    raise
                kind = str(error).split("`")[1]
                raise ValueError(
                    f"--trainer.callbacks: {kind} like one that is there already, whose state it would take. Give it "
                    "another monitor or every_n_epochs, or set --last_checkpoint.* and --best_checkpoint.* instead."
                ) from error

    def after_instantiate_classes(self) -> None:
        """Refuse what processes would do to each other's files, or to an earlier run's."""
        trains = self.subcommand == "fit"
        with one_line_errors():
            check_processes(self.trainer)
            check_nothing_in_the_way(self.trainer, trains, self.checkpoint.path if self.checkpoint and trains else None)

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
        if self.checkpoint is not None:  # what they found is in it
            callbacks = [c for c in callbacks if not isinstance(c, (BatchSizeFinder, LearningRateFinder))]
        # First: at the end of training signals stop at once again, before callbacks take their time to look.
        self.history = RunHistory()
        first: list[Callback] = [StopAndResume(), StopOnDivergence(), self.history]
        if chosen.enable_model_summary is not False and not any(isinstance(c, ModelSummary) for c in callbacks):
            first.append(ModelSummary(max_depth=2))  # the network's layers too
        trainer = super().instantiate_trainer(callbacks=[*first, *callbacks], plugins=plugins, **kwargs)
        go_on_without(trainer.loggers)
        return trainer


def parse(parser: LightningArgumentParser, words: list[str]) -> Any:
    """The config that the words make, its places settled."""
    try:
        config = parser.parse_args(words)
    except UnicodeDecodeError as error:
        refuse(f"--config: {error}. Give a YAML file.")
    settle_places(config[config.subcommand])
    settle_job(config[config.subcommand])
    return config


def found_configs(words: Sequence[str]) -> list[str]:
    """The command line with its configs found, also from another folder.

    Of an empty one nothing is left, a pipe is replaced by what came out of it, and letters beyond ASCII are escaped:
    jsonargparse would read the file in what the system takes for its encoding.
    """
    found = list(words)
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag not in ("-c", "--config") or (not equals and place + 1 == len(words)):
            continue
        value = value if equals else words[place + 1]
        with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # which the parser will find too
            path = Path(value).expanduser()
            if not path.exists() and (CONFIGS.parent / path).is_file():
                path = CONFIGS.parent / path
                value = str(path)
            text = path.read_bytes().decode()
            value = value if path.is_file() else text  # a pipe is read once
            says = yaml.safe_load(text)
            if says is None or not text.isascii():
                value = yaml.safe_dump(says or {})
        found[place + (not equals)] = f"{flag}={value}" if equals else value
    return found


def requeued(config: Any, subcommand: str) -> Path | None:
    """Where a SLURM job that was queued again goes on."""
    job = slurm_job() if subcommand == "fit" else None
    places = last_checkpoints(config)[0] if job else []
    return next((path for path in places if job in path.parts and path.is_file()), None)


def last_checkpoints(config: Any) -> tuple[list[Path], str]:
    """Where the ``last.ckpt`` of runs with these settings may be, with or without ``-shapes10``, and that in words."""
    dirpath, filename = config.last_checkpoint.dirpath, f"{config.last_checkpoint.filename or 'last'}.ckpt"
    if dirpath:
        return [Path(dirpath) / filename], f"{dirpath}/"
    root = Path(config.trainer.get("default_root_dir") or ".")
    if not logger_configs(config):  # without a logger there are no versions
        return [root / "checkpoints" / filename], f"{root}/"
    on_stand_in = copy.deepcopy(config)
    name_stand_in(on_stand_in)
    with one_line_errors():
        loggers = [instantiate_class((), logger_configs(one)[0].as_dict()) for one in (config, on_stand_in)]
    # Where ModelCheckpoint puts them: under the first logger's name and version.
    folders = [Path(logger.save_dir or root) / str(logger.name) for logger in loggers]
    places = [run / "checkpoints" / filename for place in folders for run in place.glob("*")]
    return places, " or ".join(f"{place}/" for place in dict.fromkeys(folders))
