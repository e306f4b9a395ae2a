"""What is taken of a checkpoint: the keys, types and shapes that the run would save itself, and finite numbers.

A checkpoint may come from anywhere, and Lightning and torch take its states as they are: a momentum buffer of another
shape than its parameter has fused SGD write outside its memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from callbacks.checkpoints.progress import loops_of

LARGEST = 2**53  # a count beyond it is none: floats hold no more


class MisfitError(ValueError):
    """A part of a checkpoint that is not what the run would save."""


def check_checkpoint(checkpoint: Mapping[str, Any], trainer: Trainer, parameters: Sequence[Tensor]) -> None:
    """Refuse a checkpoint whose loops, callbacks or optimisers are not like those of a run that is about to begin.

    Args:
        checkpoint: As Lightning wrote it.
        trainer: Before its run.
        parameters: The model's.

    Raises:
        MisfitError: One line that names the first place.
    """
    if "loops" in checkpoint:
        check_state(checkpoint["loops"], loops_of(trainer), "loops")
    states = checkpoint.get("callbacks", {})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state, ours = states.get(callback.state_key, {}), callback.state_dict()
        if not isinstance(state, Mapping):
            raise misfit("callbacks", state, kind(ours))
        for key in ours.keys() & state.keys():  # an earlier version's may be fewer
            check_state(state[key], ours[key], f"callbacks.{type(callback).__name__}.{key}")
    for optimizer in checkpoint.get("optimizer_states", []):
        check_optimizer(optimizer, parameters)


def check_state(theirs: Any, ours: Any, place: str, same: tuple[type, ...] = ()) -> None:
    """Refuse a state without the keys, types and shapes of ``ours``, or with numbers that are not finite.

    Numbers are not negative where ours are not. Where ours is None or empty it is for the state's owner to check.

    Args:
        theirs: What a checkpoint holds.
        ours: What the run would save before its first step.
        place: What the state is called in an error.
        same: Types of which it must hold the very values of ours.

    Raises:
        MisfitError: One line that names the first place.
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and ours:
        numbered = all(isinstance(key, int) for key in ours)  # milestones' epochs: any will do
        fits = all(isinstance(key, int) for key in theirs) if numbered else theirs.keys() == ours.keys()
        for key, value in theirs.items() if fits else []:
            check_state(value, next(iter(ours.values())) if numbered else ours[key], f"{place}.{key}", same)
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and ours:
        fits = len(theirs) == len(ours)
        for number, pair in enumerate(zip(theirs, ours, strict=False)):
            check_state(*pair, f"{place}[{number}]", same)
    elif isinstance(ours, same):
        fits = type(theirs) is type(ours) and theirs == ours
    elif isinstance(ours, Tensor):
        fits = kind(theirs) == kind(ours) and (all_finite(theirs) or torch.equal(theirs, ours.cpu()))
    elif isinstance(ours, int | float) and not isinstance(ours, bool):
        fits = isinstance(theirs, int if isinstance(ours, int) else int | float) and not isinstance(theirs, bool)
        fits = fits and (theirs == ours or min(ours, 0) <= theirs < LARGEST)
    else:
        fits = ours is None or isinstance(theirs, type(ours))
    if not fits:
        raise misfit(place, theirs, f"{kind(ours)} such as a run saves")


def check_optimizer(theirs: Any, parameters: Sequence[Tensor]) -> None:
    """Refuse an optimiser's state whose tensors are not of its parameters' shapes, or not there for all of them.

    Raises:
        MisfitError: One line that names the first place.
    """
    place = "optimizer_states"
    state = theirs.get("state") if isinstance(theirs, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(values, Mapping) for values in state.values()):
        raise misfit(place, theirs, "the parameters' states")
    places = [number for number, parameter in enumerate(parameters) if parameter.requires_grad]
    if state and {*state} != {*places}:
        raise misfit(place, f"of {len(state)} parameters", f"of {len(places)}")
    for number, values in state.items():
        if values.keys() != state[places[0]].keys():
            raise misfit(f"{place}.{number}", values, "what the others have")
        for key, value in values.items():
            shape = () if key == "step" else tuple(parameters[number].shape)
            fits = kind(value) == shape  # first: one of another shape may have no end
            if not fits or not all_finite(value):
                shown = "NaN or infinite" if fits else value
                raise misfit(f"{place}.{number}.{key}", shown, f"finite numbers of shape {shape}")


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
            if missing or group["params"] != own["params"]:
                raise misfit("optimizer_states.param_groups", sorted(missing) or "other parameters", "the model's")
            for key in (own.keys() & group.keys()) - {"params"}:
                check_state(group[key], own[key], f"optimizer_states.{key}", kinds)
    for config, state in zip(trainer.lr_scheduler_configs, checkpoint["lr_schedulers"], strict=False):
        own = config.scheduler.state_dict()
        shadowing = any(callable(getattr(type(config.scheduler), str(key), None)) for key in state.keys() - own.keys())
        if shadowing or (same_schedule and state.keys() != own.keys()):
            raise misfit("lr_schedulers", state, f"the state of a {type(config.scheduler).__name__}")
        for key in own.keys() & state.keys():
            check_state(state[key], own[key], f"lr_schedulers.{key}", kinds)


def check_best(theirs: Mapping[str, Any], monitored: bool) -> None:
    """Refuse a ModelCheckpoint's state with files outside its folder: Lightning deletes what is no longer best.

    Raises:
        MisfitError: One line that names the file.
    """
    names = ("kth_best_model_path", "last_model_path", *(["best_model_path"] if monitored else []))
    for path in [*(theirs[name] for name in names), *theirs["best_k_models"]]:
        folder, name = os.path.split(path)
        if path and (folder != str(theirs["dirpath"]) or name == ".."):
            raise misfit("callbacks.ModelCheckpoint", path, f"a file in {theirs['dirpath']}")


def misfit(place: str, theirs: Any, expected: Any) -> MisfitError:
    """The error: what a checkpoint has at a place, and what was expected there."""
    shown = theirs if isinstance(theirs, str | int | float) else kind(theirs)
    return MisfitError(f"{place}: {str(shown)[:80]}, expected {expected}. Use one that fit.py wrote.")


def kind(value: Any) -> Any:
    """A tensor's shape, where it is one of plain real numbers in memory; else what a value is, in a word."""
    if not isinstance(value, Tensor):
        return "none" if value is None else f"a {type(value).__name__}"
    plain = value.layout == torch.strided and not (value.is_quantized or value.is_complex())
    return tuple(value.shape) if plain else f"a {value.dtype} tensor, {value.layout}"


def all_finite(value: Tensor) -> bool:
    """Whether a tensor has its numbers, and none is NaN or infinite."""
    if value.is_meta:
        return False
    # A sum is infinite or NaN where one of its terms is, and five times as fast as isfinite().
    return not value.is_floating_point() or bool(
        value.sum(dtype=torch.float32).isfinite() or value.isfinite().all()  # the sum alone may be too large
    )
