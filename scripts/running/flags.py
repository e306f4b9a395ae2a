"""What ``fit.py --help`` starts with, a config's values by their flags, and which flag somebody meant."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

HELP = """\
usage: fit.py [fit | validate | test | predict] [flags]

Train AlexNet on CIFAR-10, then test the best checkpoint.

  fit        train, then test; also where none of the four is named
  validate   score a checkpoint on the validation images
  test       score a checkpoint on the test images
  predict    write down what a checkpoint makes of your own pictures

  -c FILE                      settings that differ from configs/default.yaml; later wins
  --ckpt_path FILE             what to test, or to go on from; `last` is the newest run's
  --trainer.max_epochs N       how long to train
  --data.root FOLDER           where CIFAR-10 lies, or is downloaded to
  --data.predict_folder FOLDER your own pictures
  --data.source NAME           cifar10, shapes10 or auto
  --data.subset_size N         images to train on
  --data.batch_size N          images a step
  --model.lr RATE              learning rate
  --seed_everything N          seed of the run's random numbers
  --looks false                without pictures and curves of what the network does

python scripts/fit.py fit --help lists all flags with their reasons; --print_config prints them as a file to start from.
"""

ALIASES = {
    "epochs": "--trainer.max_epochs",
    "steps": "--trainer.max_steps",
    "gpus": "--trainer.devices",
    "bs": "--data.batch_size",
    "seed": "--seed_everything",
    "checkpoint": "--ckpt_path",
    "resume": "--ckpt_path",
    "name": "--trainer.logger.init_args.name",
    "wd": "--model.weight_decay",
    "learning_rate": "--model.lr",
}


def help_alone() -> None:
    """Print ``HELP`` and exit, where the command line asks for nothing else."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(HELP, end="")
        raise SystemExit(0)


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested config's values by their dotted names: ``{"model": {"lrn": False}}`` has ``model.lrn``."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nearest(word: str, flags: Iterable[str]) -> str | None:
    """The flag that was meant by a word such as ``--epochs=3``; None where none is near.

    Of flags that end with the word, the first; else one that is spelt like it.
    """
    name = word.split("=")[0].lstrip("-").replace("-", "_")
    known = list(dict.fromkeys(flags))
    ends = [flag for flag in known if flag.lstrip("-").rpartition(".")[2] == name]
    if name in ALIASES or ends:
        return ALIASES.get(name) or ends[0]
    like = difflib.get_close_matches(f"--{name}", known, 1, 0.8)
    if like:
        return like[0]
    by_end = {flag.rpartition(".")[2]: flag for flag in reversed(known)}
    return next((by_end[end] for end in difflib.get_close_matches(name, by_end, 1, 0.8)), None)
