"""A run's settings as they lie in its config: places, loggers, precision, and what a run that goes on takes over."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from callbacks import LOOKS
from callbacks.slurm import slurm_job
from running.checkpoint import Checkpoint
from running.errors import refuse
from running.flags import leaves

# Settings that name a file or folder.
PLACES = {"root", "predict_folder", "ckpt_path", "save_dir", "default_root_dir", "dirpath"}
STAND_IN = "-shapes10"  # ends the name of a run on the stand-in
NAMES = ("name", "project", "experiment_name")  # a run's or its project's, as loggers call it
IDS = ("version", "id", "run_id", "experiment_key")  # of one run


# ---- places and loggers ------------------------------------------------------------------------------------


def settle_places(config: Any, prefix: str = "--") -> None:
    """Replace ``~`` wherever a config names a file or folder; what is not on this machine is refused in one line."""
    for key, value in list(config.items() if isinstance(config, dict) else vars(config).items()):
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, (dict, Namespace)):
                settle_places(part, f"{prefix}{key}.")
        if key in PLACES and isinstance(value, str):
            if "://" in value:
                refuse(f"{prefix}{key}: {value}, expected a folder or file of this machine. Name a local one.")
            config[key] = str(Path(value).expanduser())


def logger_configs(config: Any) -> list[Any]:
    """The configs of a run's loggers, none to several; ``true`` is replaced by what Lightning would build for it."""
    logger = config.trainer.get("logger")
    if logger is True:
        save_dir = str(config.trainer.get("default_root_dir") or ".")
        arguments = Namespace(save_dir=save_dir, name="lightning_logs", default_hp_metric=False)
        logger = Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=arguments)
        config.trainer.logger = logger
    return [one for one in (logger if isinstance(logger, list) else [logger]) if hasattr(one, "init_args")]


def settle_job(config: Any) -> None:
    """Give a SLURM job's run a folder by the job's number, where it finds its checkpoint when it is queued again."""
    if job := slurm_job():
        # Not the folder itself: Lightning would take the newest file there that any job left to be queued again.
        root = Path(config.trainer.get("default_root_dir") or ".")
        config.trainer.default_root_dir = str(root if root.name == job else root / job)
        for logger in logger_configs(config):
            if "version" in logger.init_args and logger.init_args.version is None:
                logger.init_args.version = job


def stand_in_name(name: str) -> str:
    """A run's name where its data are the stand-in's."""
    return name if name.endswith(STAND_IN) else f"{name}{STAND_IN}".removeprefix("-")


def name_stand_in(config: Any) -> None:
    """Have the name of a run on the stand-in say so, with whatever loggers have names."""
    for logger in logger_configs(config):
        for key in NAMES:
            if key in logger.init_args and (key == "name" or logger.init_args[key]):
                logger.init_args[key] = stand_in_name(str(logger.init_args[key] or ""))


def settle_ids(config: Any) -> None:
    """Choose the id of a W&B run: it names the run's folder, which is checked before W&B begins one."""
    for logger in logger_configs(config):
        given = logger.init_args
        if logger.class_path.endswith(".WandbLogger") and not (given.version or given.id):
            given.version = uuid.uuid4().hex[:8]


# ---- precision ---------------------------------------------------------------------------------------------


def settle_precision(config: Any) -> None:
    """Replace ``auto`` by what the device does best, never by timing, and say so."""
    if config.trainer.precision == "auto":
        config.trainer.precision = best_precision(config.trainer.accelerator)
        rank_zero_info(f"precision: {config.trainer.precision}, by --trainer.precision auto")


def best_precision(accelerator: Any) -> str:
    """``bf16-mixed`` on a GPU or CPU with instructions for bfloat16, elsewhere ``32-true``: emulation is far slower.

    Args:
        accelerator: Lightning's name of it; with ``auto`` it takes a GPU where there is one.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        own = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available())
        known = torch.cpu.get_capabilities() if cpu else {}
        own = known.get("avx512_bf16", False) or known.get("amx_bf16", False)
    return "bf16-mixed" if own else "32-true"


# ---- going on ----------------------------------------------------------------------------------------------


def run_settings(checkpoint: Checkpoint, subcommand: str) -> dict[str, Any]:
    """What a run on a checkpoint takes over: to go on, all that its run was told; to be tested, model and data."""
    settings, config = checkpoint.settings, checkpoint.config
    if config is None or subcommand != "fit":
        return settings
    run = {key: value for key, value in config.items() if key not in ("config", "ckpt_path")}
    for name in ("model", "data"):  # where both say something, the checkpoint is nearer to the weights
        run[name] = {**run[name], **settings.get(name, {})}
    logger = run["trainer"].get("logger")
    for one in logger if isinstance(logger, list) else [logger]:
        arguments = one.get("init_args", {}) if isinstance(one, dict) else {}
        arguments |= {key: None for key in IDS if key in arguments}  # the run goes on beside
        for key in NAMES:
            if isinstance(arguments.get(key), str):
                arguments[key] = arguments[key].removesuffix(STAND_IN).removesuffix(STAND_IN[1:])
    for key in LOOKS:  # what --looks said then it may say otherwise now
        look = run.get(key, {})
        if isinstance(look, dict) and look.get("enabled") == run.get("looks"):
            look.pop("enabled", None)
    return run


def overridden(run: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings of ``run`` that are others ``now``: by dotted name, what they were and are."""
    present = dict(leaves(now))
    return {key: (was, present[key]) for key, was in leaves(run) if key in present and present[key] != was}


def check_schedule(changes: Mapping[str, tuple[Any, Any]], schedule: str) -> None:
    """Refuse what a schedule that is laid out from a run's first step can't heed any more.

    Raises:
        ValueError: With a line that names the flag.
    """
    remedy = "Leave it as it was, or choose --model.schedule constant or plateau, which begin where the run goes on."
    for name in ("schedule", "lr", "warmup", "milestones") if schedule in ("one_cycle", "milestones") else ():
        if change := changes.get(f"model.{name}"):
            raise ValueError(f"--model.{name}: {change[1]}, but the run that goes on began with {change[0]}. {remedy}")
