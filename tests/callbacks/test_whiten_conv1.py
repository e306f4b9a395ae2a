from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import ROOT
from helpers.small_net import SmallNet, inputs_of, new_net, run
from lightning import Callback, LightningDataModule, Trainer
from torch import Tensor

from callbacks import WhitenConv1
from callbacks.pure.whitening import whitening_filters
from datamodules import CIFAR10DataModule


class FirstWeights(Callback):
    """conv1's weights before the first step."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.weight: Tensor = pl_module.net.conv1.weight.detach().clone()


def test_a_run_starts_from_filters_of_its_training_images_and_trains_on_them(
    tmp_path: Path, datamodule: CIFAR10DataModule
) -> None:
    first = FirstWeights()
    model, _ = run(tmp_path, datamodule, WhitenConv1(), first)
    images, _ = inputs_of(datamodule, "train")
    size = model.net.conv1.kernel_size[0]
    torch.testing.assert_close(first.weight, whitening_filters([images], len(first.weight), size, size // 2))
    assert not torch.equal(first.weight, model.net.conv1.weight)


def test_a_run_that_goes_on_keeps_what_it_has_learned(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    _, trainer = run(tmp_path, datamodule, WhitenConv1(), epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    learned = trainer.model.net.conv1.weight.detach().clone()
    first = FirstWeights()
    run(tmp_path, datamodule, WhitenConv1(), first, ckpt_path=str(tmp_path / "last.ckpt"))
    torch.testing.assert_close(first.weight, learned, rtol=0, atol=0)


def test_nothing_else_of_a_run_changes(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    class KeepsConv1(WhitenConv1):
        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            weight = pl_module.net.conv1.weight.detach().clone()
            super().on_fit_start(trainer, pl_module)
            pl_module.net.conv1.weight.data.copy_(weight)

    def trained(*callbacks: Callback) -> SmallNet:
        model = new_net()
        torch.nn.init.zeros_(model.net.conv1.bias)
        return run(tmp_path, datamodule, *callbacks, model=model)[0]

    for with_it, without in zip(trained(KeepsConv1()).parameters(), trained().parameters(), strict=True):
        torch.testing.assert_close(with_it, without, rtol=0, atol=0)


def test_a_count_of_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="^images: 0 is below 1"):
        WhitenConv1(0)


@pytest.mark.parametrize("recipe", ["best10", "best5000", "full"])
def test_the_recipes_that_say_so_begin_with_it(recipe: str) -> None:
    config = yaml.safe_load((ROOT / f"configs/{recipe}.yaml").read_text(encoding="utf-8"))
    assert config["trainer"]["callbacks"] == [{"class_path": "callbacks.WhitenConv1"}]


def test_what_it_needs_is_asked_for_before_anything_else(tmp_path: Path) -> None:
    class Bare(LightningDataModule):
        pass

    with pytest.raises(TypeError, match="WhitenConv1 needs a datamodule with gallery_dataloader, got Bare"):
        run(tmp_path, Bare(), WhitenConv1())
