"""Train AlexNet on CIFAR-10, then test the best checkpoint.

python scripts/fit.py                                    # configs/default.yaml: 5,000 images, 10 epochs
python scripts/fit.py -c configs/paper.yaml --data.subset_size 5000 --trainer.max_epochs 10 --model.lr 0.01
python scripts/fit.py test --ckpt_path logs/alexnet/version_0/checkpoints/best.ckpt
tensorboard --logdir logs --samples_per_plugin images=200
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from running.cli import ExperimentCLI, check_checkpoint, nothing_left, one_line_errors, one_line_failures
from running.report import announce_data, batches_an_epoch, check_folders, check_run, report, summarise

from callbacks import (
    ActivationStats,
    ConfusionMatrix,
    Conv1Filters,
    EmbeddingProjector,
    NearestNeighbours,
    Overview,
    Predictions,
    TrainingHealth,
)
from callbacks.stop_and_resume import exit_status_of_signals
from datamodules import CIFAR10DataModule
from lightning_modules import AlexNetClassifier


class FitCLI(ExperimentCLI):
    """Data, model, train, test."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What must agree is given once; each callback has a name by which its options are set."""
        parser.link_arguments("model.image_size", "data.image_size")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")
        parser.add_lightning_class_args(ModelCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(ModelCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(Conv1Filters, "conv1_filters")
        parser.add_lightning_class_args(NearestNeighbours, "nearest_neighbours")
        parser.add_lightning_class_args(Predictions, "predictions")
        parser.add_lightning_class_args(ConfusionMatrix, "confusion_matrix")
        parser.add_lightning_class_args(ActivationStats, "activation_stats")
        parser.add_lightning_class_args(EmbeddingProjector, "embedding_projector")
        parser.add_lightning_class_args(Overview, "overview")
        parser.add_lightning_class_args(TrainingHealth, "training_health")

    def fit(self, model: AlexNetClassifier, datamodule: CIFAR10DataModule, **kwargs: Any) -> None:
        """Train, test the best checkpoint, and say what came of it."""
        trainer, start = self.trainer, time.monotonic()
        with one_line_errors():  # whatever is wrong shows before the first step
            datamodule.setup("fit")
            datamodule.setup("test")
            check_run(trainer, datamodule, model)
            if kwargs.get("ckpt_path"):
                path = Path(kwargs["ckpt_path"])
                check_checkpoint(path, model)
                if nothing_left(path, trainer, datamodule):
                    return
            check_folders(trainer)
        announce_data(trainer, datamodule)
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, batches_an_epoch(trainer, datamodule))

        with one_line_failures(trainer):
            trainer.fit(model, datamodule, **kwargs)
        if trainer.interrupted:
            return
        trained = summarise(trainer, datamodule, seconds=time.monotonic() - start)

        best = None if trainer.fast_dev_run else trainer.checkpoint_callbacks[0].best_model_path
        trainer.test(model, datamodule, ckpt_path=best or None, verbose=False)
        report(trainer, trained, seconds=time.monotonic() - start, config=self.config[self.subcommand])

    def test(self, model: AlexNetClassifier, datamodule: CIFAR10DataModule, ckpt_path: str, **kwargs: Any) -> None:
        """Test a checkpoint."""
        with one_line_errors():
            check_checkpoint(Path(ckpt_path), model)
            datamodule.setup("test")
            check_folders(self.trainer)
        self.trainer.test(model, datamodule, ckpt_path=ckpt_path, **kwargs)

    def validate(self, model: AlexNetClassifier, datamodule: CIFAR10DataModule, ckpt_path: str, **kwargs: Any) -> None:
        """Score a checkpoint on the validation images."""
        with one_line_errors():
            check_checkpoint(Path(ckpt_path), model)
            datamodule.setup("validate")
            check_folders(self.trainer)
        self.trainer.validate(model, datamodule, ckpt_path=ckpt_path, **kwargs)


def main() -> None:
    """The command line."""
    with exit_status_of_signals():
        FitCLI(AlexNetClassifier, CIFAR10DataModule)


if __name__ == "__main__":
    main()
