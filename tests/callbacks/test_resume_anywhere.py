"""Whatever is trained how: a run that was stopped or killed anywhere ends like one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small import UNSEEN
from helpers.small import small_net as small_net
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.stop_and_resume import callbacks_of
from lightning_modules import AlexNetClassifier

Fit = Callable[..., int]
LOGS = Path("logs/alexnet-shapes10")
STEPS = ("training_step", "validation_step", "test_step")
TERM, KILL = signal.SIGTERM, signal.SIGKILL
Place = tuple[int | None, signal.Signals]  # a step, counted from where the process began; None for its end
SMALL = [*UNSEEN, "--data.val_size=30", "--trainer.limit_test_batches=2"]
VARY = {"command", "seconds", "fit_seconds", "resumed"}  # what a summary has of its process alone


# ---- what is trained how -----------------------------------------------------------------------------------


def callback(kind: str, **arguments: Any) -> list[str]:
    return [f"--trainer.callbacks+={kind}", *(f"--trainer.callbacks.{name}={v}" for name, v in arguments.items())]


AVERAGING = [
    callback("EMAWeightAveraging", decay=0.9),
    callback("EMAWeightAveraging", decay=0.8, update_every_n_steps=2, update_starting_at_step=5),
    callback("EMAWeightAveraging", decay=0.5, update_every_n_steps=0, update_starting_at_epoch=1),
    callback("StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=1),
    callback("StochasticWeightAveraging", swa_lrs=0.005, swa_epoch_start=2, annealing_epochs=2),
    callback("StochasticWeightAveraging", swa_lrs=0.002, swa_epoch_start=0.4, annealing_strategy="linear"),
]
EXTRAS = [
    callback("EarlyStopping", monitor="val/top1", mode="max", patience=0),
    callback("EarlyStopping", monitor="val/loss", patience=1, min_delta=0.05),
    callback("EarlyStopping", monitor="train/loss", patience=0, min_delta=0.05, check_on_train_epoch_end="true"),
    callback("ModelCheckpoint", every_n_train_steps=5, save_top_k=-1),
    callback("ModelCheckpoint", every_n_train_steps=4, save_top_k=1, filename="often"),
    callback("ModelCheckpoint", monitor="val/loss", save_top_k=2, filename="top-{step}"),
    callback("GradientAccumulationScheduler", scheduling="{1: 2, 2: 3}"),
    callback("LearningRateMonitor"),
]
LAST = [
    ["--last_checkpoint.every_n_epochs=2"],
    ["--last_checkpoint.every_n_train_steps=3"],
    ["--last_checkpoint.every_n_train_steps=3", "--last_checkpoint.save_on_train_epoch_end=false"],
    ["--last_checkpoint.save_on_train_epoch_end=false"],
    ["--last_checkpoint.save_on_train_epoch_end=null"],
]


def configuration(rng: random.Random) -> list[str]:
    """Words of a run of 8 to 12 batches an epoch that fit.py takes."""
    words = [f"--data.batch_size={rng.choice([9, 10, 12])}", f"--seed_everything={rng.randrange(99)}"]

    def maybe(chance: float, flag: str, *values: Any) -> Any:
        value = rng.choice(values) if rng.random() < chance else None
        words.extend([f"--{flag}={value}"] if value is not None else [])
        return value

    averaging = rng.choice(AVERAGING) if rng.random() < 0.35 else []
    extra = rng.choice(EXTRAS) if rng.random() < 0.35 else []
    words += [*averaging, *extra]
    if "GradientAccumulationScheduler" not in str(extra):
        maybe(0.4, "trainer.accumulate_grad_batches", 2, 3, 5)
    every = maybe(0.25, "trainer.check_val_every_n_epoch", 2, "null")
    intervals = [5, 7] if every == "null" else [0.5, 0.3, 3]
    often = maybe(1 if every == "null" else 0.35, "trainer.val_check_interval", *intervals)
    maybe(0.15, "trainer.gradient_clip_val", 0.5)
    maybe(0.15, "trainer.limit_val_batches", 2)
    maybe(0.15, "trainer.num_sanity_val_steps", 1)
    maybe(0.1, "trainer.precision", "bf16-mixed")
    maybe(0.15, "trainer.reload_dataloaders_every_n_epochs", 1)
    if every == "null" or maybe(0.2, "trainer.overfit_batches", 0.4, 5) is None:
        maybe(0.2, "trainer.limit_train_batches", 0.8, 7)
    steps = maybe(0.25, "trainer.max_steps", 10, 17, 20, 24)
    if steps and "GradientAcc" not in str(extra) and rng.random() < 0.5 and "Stochastic" not in str(averaging):
        words.append("--trainer.max_epochs=-1")
    else:
        words.append(f"--trainer.max_epochs={rng.choice([2, 3, 3])}")
    schedules = ["constant", "milestones"]
    schedules += [] if every else ["plateau", "plateau"]
    schedules += [] if "Gradient" in str(extra) or "Stochastic" in str(averaging) else ["one_cycle"]
    words += [f"--model.schedule={rng.choice(schedules)}", "--model.milestones=[1,2]", "--model.patience=0"]
    chance = 0 if "top-" in str(extra) else 0.2  # two of a kind with the same monitor are refused
    if maybe(chance, "best_checkpoint.monitor", "val/loss", *([] if every or often else ["train/loss"])):
        words.append("--best_checkpoint.mode=min")
    words += rng.choice(LAST) if rng.random() < 0.4 else []
    return [*SMALL, *words]


# ---- a run, and how it is stopped --------------------------------------------------------------------------


class Stops:
    """Counts a run's steps of training, validation and test, and sends its process a signal in one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen = 0
        self.at: int | None = None
        self.signum = signal.SIGTERM
        self.end: dict[str, Any] = {}  # what a run had come to when training ended
        for hook in STEPS:
            monkeypatch.setattr(AlexNetClassifier, hook, self._counted(getattr(AlexNetClassifier, hook)))
        stops = self

        def on_train_end(self: AlexNetClassifier) -> None:
            stops.end = come_to(self, stops.seen > 0)

        monkeypatch.setattr(AlexNetClassifier, "on_train_end", on_train_end)

    def _counted(self, original: Any) -> Any:
        def step(module: AlexNetClassifier, *arguments: Any) -> Any:
            if not module.trainer.sanity_checking and module.trainer.state.fn in (TrainerFn.FITTING, TrainerFn.TESTING):
                self.seen += 1
                if self.seen == self.at:
                    os.kill(os.getpid(), self.signum)
            return original(module, *arguments)

        return step

    def arrange(self, at: int | None, signum: signal.Signals = TERM) -> None:
        self.seen, self.at, self.signum, self.end = 0, at, signum, {}


def come_to(module: AlexNetClassifier, trained: bool) -> dict[str, Any]:
    """Weights and optimiser at the end of training; where it took a step, schedules and what callbacks keep too."""
    trainer: Any = module.trainer
    states: dict[str, Any] = {"weights": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
    states |= {"step": trainer.global_step, "epoch": trainer.current_epoch}
    if not trained:
        return dict(leaves(states))
    kinds = (WeightAveraging, StochasticWeightAveraging, EarlyStopping)
    kept = {type(c).__name__: c.state_dict() for kind in kinds for c in callbacks_of(trainer, kind)}
    for one in callbacks_of(trainer, WeightAveraging):
        kept["averages"] = one._average_model.state_dict()
    states["schedules"] = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
    return dict(leaves({**states, "callbacks": kept}))


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{place}/{key}")
    elif isinstance(value, torch.Tensor):
        yield place, (tuple(value.shape), value.detach().flatten().tolist())
    elif not callable(value):
        yield place, value


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    keys = [key for key in {**one, **other} if one.get(key, "missing") != other.get(key, "missing")]
    return [f"{key}: {str(one.get(key, 'missing'))[:99]} != {str(other.get(key, 'missing'))[:99]}" for key in keys]


def summary(run: Path) -> dict[str, Any]:
    found = {key: v for key, v in json.loads((run / "summary.json").read_text()).items() if key not in VARY}
    for entry in found["history"]:
        del entry["seconds"]
    return dict(leaves(found))


def weights(run: Path, name: str) -> dict[str, Any] | None:
    path = run / "checkpoints" / name
    return dict(leaves(torch.load(path, weights_only=True)["state_dict"])) if path.is_file() else None


def killed(fit: Fit, *words: str) -> int:
    """Run in a process of its own, which has everything imported already; its exit status, -9 for SIGKILL."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(fit(*words))
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_of(fit: Fit, words: list[str], places: list[Place], stops: Stops) -> Path:
    """Train with stops at those places, going on each time; the folder of the process that came to the end."""
    for at, signum in [*places, (None, TERM)]:
        resume = ["--ckpt_path=last"] if list(LOGS.glob("*/checkpoints/last*.ckpt")) else []
        stops.arrange(at, signum)
        status = killed(fit, *words, *resume) if signum == KILL else fit(*words, *resume)
        if status == 0:  # before it came to that place, or there is none
            break
        assert at is not None
        assert status == (-9 if signum == KILL else 143)
    return newest()


def newest() -> Path:
    return max(LOGS.iterdir(), key=lambda path: int(path.name.removeprefix("version_")))


def differences(whole: Path, resumed: Path, runs: list[Path]) -> list[str]:
    """Where what a run left differs from what the one left that nothing happened to."""
    found = differing(summary(whole), summary(resumed))
    for path in (whole / "checkpoints").glob("*.ckpt"):
        if not path.name.startswith("last"):
            others = [weights(run, path.name) for run in ([resumed] if path.stem == "best" else runs)]
            if weights(whole, path.name) not in others:
                found.append(f"{path.name}: {'other' if any(others) else 'no'} weights")
    return found


class Comparison:
    """A configuration's run that nothing happened to, and what runs with stops have otherwise."""

    def __init__(self, fit: Fit, stops: Stops, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.fit, self.stops, self.words, self.monkeypatch = fit, stops, words, monkeypatch
        self.home, self.cases = Path.cwd(), 0
        self._into("whole")
        stops.arrange(None)
        assert fit(*words) == 0, words
        self.whole, self.end, self.steps = newest().absolute(), stops.end, stops.seen

    def _into(self, name: str) -> None:
        (self.home / name).mkdir()
        self.monkeypatch.chdir(self.home / name)

    def otherwise(self, *places: Place) -> list[str]:
        """What differs after stops at these places, a line each."""
        self._into(str(self.cases))
        self.cases += 1
        resumed = run_of(self.fit, self.words, list(places), self.stops)
        found = differing({key: self.end.get(key) for key in self.stops.end}, self.stops.end)
        return found + differences(self.whole, resumed, sorted(LOGS.iterdir()))


@pytest.fixture
def stops(small_net: None, monkeypatch: pytest.MonkeyPatch) -> Stops:
    return Stops(monkeypatch)


# An epoch has 10 steps of training and 3 of validation.
CASES: dict[str, tuple[list[str], list[list[Place]]]] = {
    "in_validation_while_gradients_accumulate": (
        ["--trainer.accumulate_grad_batches=3", "--trainer.val_check_interval=4", *LAST[3], "--trainer.max_epochs=2"],
        [[(6, TERM)], [(9, KILL)]],
    ),
    "within_an_epoch_of_overfit_batches": (["--trainer.overfit_batches=0.4"], [[(3, TERM)]]),
    "while_weights_are_averaged_and_the_rate_anneals": (
        [*AVERAGING[4], "--model.schedule=constant", "--trainer.max_epochs=3"],
        [[(30, TERM)]],
    ),
    "in_the_last_validation_with_a_checkpoint_every_second_epoch": (
        [*LAST[0], "--trainer.max_epochs=3"],
        [[(39, TERM)]],
    ),
    "in_the_validation_after_max_steps": (["--trainer.max_steps=20", "--trainer.max_epochs=-1"], [[(26, TERM)]]),
    "in_the_test_after_early_stopping": (
        [*callback("EarlyStopping", monitor="val/loss", patience=0, min_delta=9), "--trainer.max_epochs=4"],
        [[(28, TERM)]],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_stopped(fit: Fit, stops: Stops, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    words, runs = CASES[case]
    comparison = Comparison(fit, stops, [*SMALL, "--data.batch_size=10", *words], monkeypatch)
    assert [comparison.otherwise(*places) for places in runs] == [[] for _ in runs]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_a_hundred(fit: Fit, stops: Stops, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Two for each of 50 configurations, at places drawn by chance."""
    rng = random.Random(seed)
    comparison, found = Comparison(fit, stops, configuration(rng), monkeypatch), {}
    for _ in range(2):
        places = [
            (rng.randint(1, comparison.steps), rng.choice([TERM, TERM, KILL])) for _ in range(rng.choice([1, 1, 2]))
        ]
        found[str(places)] = comparison.otherwise(*places)
    said = " ".join(comparison.words[len(SMALL) :])
    assert not any(found.values()), f"{said}, of {comparison.steps}: {json.dumps(found, indent=1)}"
