"""What holds for every callback that only looks: whatever the logger, training stays as it is."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_net import SmallNet, events, new_net, png, run, to_tensorboard, trainer_for
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from callbacks import LOOKS
from callbacks.base import EveryNEpochs, Looking
from datamodules import CIFAR10DataModule

ALL: dict[str, Any] = dict(LOOKS)
each = pytest.mark.parametrize("name", ALL)
each_nth = pytest.mark.parametrize("name", [name for name in ALL if issubclass(ALL[name], EveryNEpochs)])
# The files each draws into, and the epochs it draws after: before the first step, after each of two, or at the end.
PICTURES = {
    "confusion_matrix": (["confusion/val_epoch_"], [1, 2]),
    "conv1_filters": (["conv1_filters/epoch_"], [0, 1, 2]),
    "nearest_neighbours": (["retrieval/val_epoch_"], [2]),
    "predictions": (["predictions/val_epoch_"], [0, 1, 2]),
    "embedding_projector": (["embedding/val_epoch_"], [2]),
    "explanations": (["explanations/val_epoch_"], [2]),
    "calibration": (["calibration/val_epoch_"], [2]),
    "top_losses": (["top_losses/val_epoch_"], []),
    "top_patches": (["top_patches/conv1_epoch_", "top_patches/conv2_epoch_"], [2]),
}
TESTED = ("calibration", "confusion_matrix", "explanations", "nearest_neighbours", "predictions", "top_losses")
LAYERS = ("conv1", "conv2", "fc7")
SCALARS = {
    "activation_stats": {f"{kind}/{layer}" for kind in ("dead", "activation_scale") for layer in LAYERS},
    "conv1_filters": {f"filters/{name}" for name in ("moved_mean", "moved_max", "structured")}
    | {f"filters/colour_group{number}" for number in (1, 2)},
    "training_health": {"train/lr"}
    | {f"health/{name}" for name in ("gradient_norm", "images_per_second", "epoch_seconds", "memory_gib")},
    "nearest_neighbours": {f"val/retrieval_p{n}" for n in (1, 5, 10)},
    "overview": {"hp/val_top1"},
    "calibration": {"val/ece"},
}
OTHERS = {"epoch", "val/top1"}


def pictures(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png") if path.name != "sprite.png")


def expected(name: str, epochs: list[int] | None = None) -> list[str]:
    starts, usual = PICTURES.get(name, ([], []))
    return [f"{start}{epoch:03d}.png" for start in starts for epoch in epochs or usual]


def drawn_by_test(name: str, epoch: int) -> list[str]:
    """What a test draws of a network that was trained for so many epochs."""
    looked = name in TESTED
    return [path.replace("/val", "/test") for path in expected(name, [epoch])] if looked else []


def warns(message: str | None) -> Any:
    return pytest.warns(UserWarning, match=message) if message else nullcontext()


@each
def test_one_file_is_one_class_is_one_config_key(name: str) -> None:
    assert issubclass(LOOKS[name], Looking)
    assert LOOKS[name].__module__ == f"callbacks.{name}"
    assert LOOKS[name].__name__ == "".join(word.capitalize() for word in name.split("_"))


@each
def test_what_is_written_and_that_training_is_the_same(
    tmp_path: Path, datamodule: CIFAR10DataModule, name: str
) -> None:
    plain, _ = run(tmp_path / "plain", datamodule)
    watched, trainer = run(tmp_path / "watched", datamodule, ALL[name]())
    assert len(watched.losses) == 8
    assert torch.equal(torch.stack(watched.losses), torch.stack(plain.losses))
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))
    assert watched.modes == [(True, False)] * 8
    assert pictures(tmp_path / "watched") == expected(name)
    log = events(tmp_path / "watched")
    assert set(log.Tags()["scalars"]) == SCALARS.get(name, set()) | OTHERS
    tags = log.Tags()["images"]
    logged = [event for tag in sorted(tags) for event in log.Images(tag)]
    for event, path in zip(logged, expected(name), strict=True):
        assert event.step == 4 * int(path[-7:-4])
        assert np.array_equal(png(io.BytesIO(event.encoded_image_string)), png(tmp_path / "watched" / path))

    trainer.test(watched, datamodule, verbose=False)
    assert [path for path in pictures(tmp_path / "watched") if "test" in path] == drawn_by_test(name, epoch=2)


@each
def test_whatever_the_logger(tmp_path: Path, datamodule: CIFAR10DataModule, name: str) -> None:
    run(tmp_path / "none", datamodule, ALL[name](), logger=False)
    assert pictures(tmp_path / "none") == expected(name)

    _, trainer = run(tmp_path, datamodule, ALL[name](), logger=CSVLogger(str(tmp_path / "csv"), name="run"))
    assert pictures(Path(str(trainer.log_dir))) == expected(name)
    header = (tmp_path / "csv/run/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert SCALARS.get(name, set()) - {"hp/val_top1"} <= set(header)

    folders = [tmp_path / "a", tmp_path / "b"]
    first, last = map(to_tensorboard, folders)
    run(tmp_path, datamodule, ALL[name](), logger=[first, CSVLogger(str(tmp_path / "c")), last])
    tags = [events(folder).Tags() for folder in folders]
    assert tags[0] == tags[1]
    assert set(tags[0]["scalars"]) == SCALARS.get(name, set()) | OTHERS
    assert [pictures(folder) for folder in folders] == [expected(name), []]  # the run's folder is the first logger's


@each
def test_switched_off_fast_dev_run_and_sanity_check(tmp_path: Path, datamodule: CIFAR10DataModule, name: str) -> None:
    for folder, enabled, options in (("off", False, {}), ("dev", True, {"fast_dev_run": True})):
        model, trainer = run(tmp_path / folder, datamodule, ALL[name](enabled=enabled), **options)
        trainer.test(model, datamodule, verbose=False)
    assert not pictures(tmp_path)
    tags = events(tmp_path / "off").Tags()
    assert {*tags["scalars"], *tags["images"], *tags["tensors"]} == OTHERS

    run(tmp_path / "sane", datamodule, ALL[name](), num_sanity_val_steps=2, max_steps=1, limit_val_batches=0)
    log = events(tmp_path / "sane")
    measured = ("calibration", "confusion", "hp/", "val/ece")
    assert not any(tag.startswith(measured) for kind in ("scalars", "images") for tag in log.Tags()[kind])


@each
def test_no_validation_images(tmp_path: Path, small_shapes: None, name: str) -> None:
    data = CIFAR10DataModule(source="shapes10", subset_size=20, val_size=0, batch_size=10, image_size=24)
    warned = {
        "nearest_neighbours": "NearestNeighbours: no val or no training images, so there is nothing to retrieve.",
        "predictions": "Predictions: no val images to predict.",
        "activation_stats": "ActivationStats: no validation images to measure on.",
        "embedding_projector": "EmbeddingProjector: no validation images to embed.",
        "explanations": "Explanations: no val images to explain.",
    }
    with warns(warned.get(name)):
        model, trainer = run(tmp_path, data, ALL[name](), epochs=1)
    assert len(model.losses) == 2
    trainer.test(model, data, verbose=False)
    assert [path for path in pictures(tmp_path) if "test" in path] == drawn_by_test(name, epoch=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@each
def test_a_diverged_network_does_not_stop_the_run(
    tmp_path: Path, datamodule: CIFAR10DataModule, name: str, value: float
) -> None:
    class Diverges(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            for layer in ("net.conv1", "net.fc7", "net.fc8"):
                pl_module.get_submodule(layer).weight.data.fill_(value)

    warned = {
        "calibration": "Calibration: probabilities are NaN",
        "conv1_filters": "Conv1Filters: conv1 holds NaN",
        "embedding_projector": "EmbeddingProjector: features are NaN or infinite",
        "nearest_neighbours": "NearestNeighbours: features are NaN or infinite",
        "predictions": "Predictions: probabilities are NaN",
        "explanations": "Explanations: probabilities are NaN",
        "top_patches": "TopPatches: activations are NaN or infinite",
    }
    with warns(warned.get(name)):
        _, trainer = run(tmp_path, datamodule, Diverges(), ALL[name]())
    assert trainer.global_step == 8
    assert pictures(tmp_path) == [path for path in expected(name) if "epoch_000" in path or name not in warned]


def test_ten_crops(tmp_path: Path, small_shapes: None) -> None:
    data = CIFAR10DataModule(source="shapes10", subset_size=20, val_size=10, image_size=24, test_crops=10)
    trainer_for(tmp_path, *(make() for make in ALL.values())).test(new_net(), data, verbose=False)
    assert len(pictures(tmp_path)) == len(TESTED) + 2  # of two layers top_patches


@each_nth
def test_every_n_epochs(tmp_path: Path, datamodule: CIFAR10DataModule, name: str) -> None:
    run(tmp_path, datamodule, ALL[name](every_n_epochs=2), epochs=3)
    if name not in PICTURES:
        assert [e.step for e in events(tmp_path).Scalars(min(SCALARS[name]))] == [0, 8, 12]
    else:
        first = [0] if name in ("conv1_filters", "predictions") else []
        assert pictures(tmp_path) == expected(name, [*first, 2, 3])


@pytest.mark.parametrize(
    ("name", "argument", "value", "least"),
    [
        *((name, "every_n_epochs", -1, 0) for name in ALL if issubclass(ALL[name], EveryNEpochs)),
        ("activation_stats", "num_images", 0, 1),
        ("confusion_matrix", "examples", -1, 0),
        ("confusion_matrix", "pairs", -1, 0),
        ("embedding_projector", "num_images", 1, 2),
        ("explanations", "num_images", 0, 1),
        ("nearest_neighbours", "k", 0, 1),
        ("nearest_neighbours", "max_gallery", 0, 1),
        ("nearest_neighbours", "max_queries", 0, 1),
        ("nearest_neighbours", "num_queries", 0, 1),
        ("nearest_neighbours", "precision_at", (1, 0), 1),
        ("predictions", "num_images", 0, 1),
        ("top_losses", "num_images", -1, 0),
        ("top_patches", "num_images", 0, 1),
        ("top_patches", "units", 0, 1),
    ],
)
def test_counts_out_of_range(name: str, argument: str, value: Any, least: int) -> None:
    wrong = rf"^{argument}: -?\d is below {least}, expected a count\. Choose {least} or more"
    with pytest.raises(ValueError, match=wrong):
        ALL[name](**{argument: value})


def test_what_is_missing_shows_before_training(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    class Mute(SmallNet):
        embed = log_probabilities = None  # type: ignore[assignment]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("trained")

    asking = ("activation_stats", "embedding_projector", "nearest_neighbours", "predictions", "top_patches")
    for name in asking:
        with pytest.raises(TypeError, match=f"{ALL[name].__name__} needs a model with .*, got Mute"):
            trainer_for(tmp_path, ALL[name]()).fit(Mute(), datamodule)
    for name in (*asking, "confusion_matrix", "top_losses"):
        with pytest.raises(TypeError, match=f"{ALL[name].__name__} needs a datamodule with .*, got NoneType"):
            trainer_for(tmp_path, ALL[name]()).fit(SmallNet(), datamodule.train_dataloader())


def test_a_datamodule_of_the_contract_is_enough(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    bare = LightningDataModule()
    for loader in ("train", "val", "test", "gallery", "query"):
        setattr(bare, f"{loader}_dataloader", getattr(datamodule, f"{loader}_dataloader"))
    for name in ("class_names", "to_rgb", "on_after_batch_transfer"):
        setattr(bare, name, getattr(datamodule, name))
    model, trainer = run(tmp_path, bare, *(make() for make in ALL.values()))
    trainer.test(model, bare, verbose=False)
    assert pictures(tmp_path) == sorted(path for name in ALL for path in expected(name) + drawn_by_test(name, epoch=2))
