"""Train AlexNet on CIFAR-10, then test the best checkpoint.

python scripts/fit.py                                    # configs/default.yaml: 5,000 images, 10 epochs
python scripts/fit.py -c configs/paper.yaml --data.subset_size 5000 --trainer.max_epochs 10
python scripts/fit.py test --ckpt_path logs/alexnet/version_0/checkpoints/best.ckpt
python scripts/fit.py predict --ckpt_path logs/alexnet/version_0/checkpoints/best.ckpt --data.predict_folder holiday/
tensorboard --logdir logs --samples_per_plugin images=200
"""

from __future__ import annotations

from running.start import script

# isort: split
from running.flags import help_alone

if __name__ == "__main__":
    with script():
        help_alone()  # before imports that take seconds

# isort: split
import time
from itertools import compress
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from running.averaging import save_average, take_average
from running.checkpoint import Checkpoint, check_resume
from running.checks import Pass, announce_data, batches_an_epoch, check_folders, check_pass, check_run
from running.cli import ExperimentCLI, one_line_errors, one_line_failures
from running.errors import printable, refuse
from running.predictions import as_csv, gathered, rows_of
from running.report import measured, report, summarise_fit

from callbacks import LOOKS
from callbacks.base import run_folder
from callbacks.checkpoints.files import damage, write_whole
from callbacks.checkpoints.io import DurableCheckpointIO
from callbacks.slurm import queued_again
from callbacks.stop_and_resume import resumable_path
from datamodules import CIFAR10DataModule
from lightning_modules import AlexNetClassifier

CHECKPOINTS = ("best_checkpoint", "last_checkpoint")


class FitCLI(ExperimentCLI):
    """Data, model, train, test."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.parsers: list[LightningArgumentParser] = []
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What must agree is given once; each callback has a name by which its options are set."""
        self.parsers.append(parser)
        parser.link_arguments("model.image_size", "data.image_size")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")
        for key in CHECKPOINTS:
            parser.add_lightning_class_args(ModelCheckpoint, key)
        for key, look in LOOKS.items():
            parser.add_lightning_class_args(look, key)
            parser.set_defaults({f"{key}.enabled": None})  # as --looks says

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Leave the checkpoints out with ``--trainer.enable_checkpointing false``."""
        for parser in self.parsers if self.config_init[self.subcommand].trainer.enable_checkpointing is False else []:
            parser.callback_keys = [key for key in parser.callback_keys if key not in CHECKPOINTS]
        return super().instantiate_trainer(**kwargs)

    def fit(self, model: AlexNetClassifier, datamodule: CIFAR10DataModule, **kwargs: Any) -> None:
        """Train, test the best checkpoint, and say what came of it."""
        trainer: Any = self.trainer
        start = time.monotonic()
        with one_line_errors():  # whatever is wrong shows before the first step
            datamodule.setup("fit")
            datamodule.setup("test")
            check_run(trainer, datamodule, model, self.best)
            if self.checkpoint is not None:
                self.checkpoint.check_fits(model, trainer)
                check_resume(self.checkpoint, trainer, datamodule, model)
            check_folders(trainer)
        announce_data(trainer, datamodule)
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, batches_an_epoch(trainer, datamodule))

        self.history.chosen = self.best
        with one_line_failures(trainer):
            trainer.fit(model, datamodule, **kwargs)
        before = self.history.before  # a best.ckpt that holds more than weights brings its own
        if trainer.interrupted:
            return
        best = None if trainer.fast_dev_run else self.best.best_model_path or None
        if best and isinstance(trainer.strategy.checkpoint_io, DurableCheckpointIO) and (wrong := damage(Path(best))):
            other = "the last weights: python scripts/fit.py test --ckpt_path"
            refuse(f"{best}: {wrong}, after training. Test {other} {resumable_path(trainer)}", status=1)
        trained = summarise_fit(trainer, self.history, self.best, best)
        if take_average(trainer, model):
            trainer.validate(model, datamodule, verbose=False)
            trained |= {"tested": "averaged weights", "val_top1": None, "val_top5": None}
            trained |= measured(trainer, self.history, "val")
            with one_line_failures(trainer):
                best = save_average(trainer)

        with one_line_failures(trainer):
            trainer.test(model, datamodule, ckpt_path=best, verbose=False)
        tested = measured(trainer, self.history, "test")
        seconds = round(time.monotonic() - start + before, 1)
        report(trainer, datamodule, {**trained, **tested, "seconds": seconds}, self.settings)

    def test(self, model: AlexNetClassifier, datamodule: CIFAR10DataModule, **kwargs: Any) -> None:
        """Test a checkpoint."""
        self.score("test", model, datamodule, **kwargs)

    def validate(self, model: AlexNetClassifier, datamodule: CIFAR10DataModule, **kwargs: Any) -> None:
        """Score a checkpoint on the validation images."""
        self.score("val", model, datamodule, **kwargs)

    def score(self, stage: Literal["val", "test"], model: Any, datamodule: CIFAR10DataModule, **kwargs: Any) -> None:
        """Test or validate, and write the figures down."""
        trainer, start, checkpoint = self.trainer, time.monotonic(), self.checked(stage, model, datamodule)
        with one_line_failures(trainer):
            (trainer.validate if stage == "val" else trainer.test)(model, datamodule, **kwargs)
        figures = {"epochs": checkpoint.epochs, **measured(trainer, self.history, stage)}
        report(trainer, datamodule, {**figures, "seconds": round(time.monotonic() - start, 1)}, self.settings)

    def predict(self, model: AlexNetClassifier, datamodule: CIFAR10DataModule, **kwargs: Any) -> None:
        """Write down what a checkpoint makes of the user's own pictures."""
        trainer: Any = self.trainer
        checkpoint = self.checked("predict", model, datamodule)
        with one_line_failures(trainer):
            batches = trainer.predict(model, datamodule, **{**kwargs, "return_predictions": True})
        files, images, _ = datamodule.photos
        table = gathered(trainer, batches or [], len(images), model.num_classes)
        path = run_folder(trainer) / "predictions.csv"
        checkpoint.check_probabilities(table)
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        done = table.any(1)  # all of them, but for --trainer.limit_predict_batches
        rows = rows_of([*map(printable, compress(files, done))], table[done], checkpoint.class_names, {})
        with one_line_failures(trainer):
            write_whole(path, as_csv(rows))
        print(printable(f"written: {path}, {int(done.sum()):,} pictures"))

    def checked(self, stage: Pass, model: AlexNetClassifier, datamodule: CIFAR10DataModule) -> Checkpoint:
        """The checkpoint, when whatever is wrong with it, the images or the settings was refused."""
        checkpoint = self.checkpoint
        assert checkpoint is not None  # parse_arguments has refused that
        with one_line_errors():
            if stage == "predict":  # without the images that it was trained on
                checkpoint.check_complete()
            checkpoint.check_fits(model, self.trainer)
            datamodule.setup("validate" if stage == "val" else stage)
            check_pass(self.trainer, datamodule, stage)
            check_folders(self.trainer)
        return checkpoint


def main() -> None:
    """Run the command line; exit status 143, 130 or 129 where SIGTERM, Ctrl-C or SIGHUP ended it."""
    with script(), queued_again():
        help_alone()
        FitCLI(AlexNetClassifier, CIFAR10DataModule)


if __name__ == "__main__":
    main()
