"""The default config's dashboard from the outside: what ``fit.py`` leaves in TensorBoard and in the run's folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import load
from helpers.small import small_net as small_net
from helpers.small_net import events

from callbacks import LOOKS

Fit = Callable[..., int]
RUN = Path("logs/alexnet-shapes10/version_0")


def test_the_default_config_has_it_all(fit: Fit) -> None:
    assert fit("--trainer.log_every_n_steps=1", once="whole") == 0
    log = events(RUN)
    both = ("calibration", "confusion", "explanations", "predictions", "retrieval")
    pictures = {f"{name}/{stage}" for name in both for stage in ("val", "test")} | {"top_losses/test"}
    pictures -= {"explanations/val", "retrieval/val"}  # after_fit is false
    pictures |= {f"top_patches/conv{i}" for i in range(1, 6)}
    assert {"filters/conv1", "embedding/val"} | pictures == set(log.Tags()["images"])
    texts = {"config/text_summary", "custom_scalars__config__", "confusion/val/text_summary"}
    assert texts <= set(log.Tags()["tensors"])
    assert any("conv5" in node.name for node in log.Graph().node)
    layers = [f"conv{i}" for i in range(1, 6)] + ["fc6", "fc7"]
    wanted = {f"{kind}/{layer}" for kind in ("dead", "activation_scale") for layer in layers}
    wanted |= {"train/lr", "health/gradient_norm", "health/images_per_second", "health/epoch_seconds"}
    assert wanted <= set(log.Tags()["scalars"])
    summary = json.loads((RUN / "summary.json").read_text())
    assert log.Scalars("hp/val_top1")[-1].value == pytest.approx(summary["val_top1"])
    assert log.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode() == (
        f"```yaml\n{(RUN / 'config.yaml').read_text().strip()}\n```"
    )
    # The confusion matrix and Lightning's metric count the same images.
    assert f"{100 * log.Scalars('val/top1')[-1].value:.1f} %" in (RUN / "confusion/val_epoch_002.md").read_text()
    assert f"{100 * summary['test_top1']:.1f} %" in next(RUN.glob("confusion/test_epoch_*.md")).read_text()
    best = next(entry for entry in summary["history"] if entry["val_top1"] == summary["val_top1"])
    assert summary["val_ece"] == best["val_ece"]
    assert log.Scalars("test/ece")[-1].value == pytest.approx(summary["test_ece"])
    # So does the table of all predictions.
    with open(RUN / "predictions_test.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    right = [row["true_class"] == row["predicted_class"] for row in rows]
    assert sum(right) / len(rows) == pytest.approx(summary["test_top1"])
    assert sum(float(row["loss"]) for row in rows) / len(rows) == pytest.approx(summary["test_loss"], abs=1e-5)


@pytest.mark.usefixtures("small_net")
def test_a_test_of_its_own_says_the_same_of_each_image(fit: Fit) -> None:
    assert fit("--trainer.max_epochs=1") == 0
    assert fit("test", "--ckpt_path", str(RUN / "checkpoints/best.ckpt")) == 0
    again = RUN.with_name("version_1")
    for name in ("predictions_test.csv", "top_losses/test_epoch_001.png", "calibration/test_epoch_001.png"):
        assert (again / name).read_bytes() == (RUN / name).read_bytes()
    first, second = (json.loads((run / "summary.json").read_text()) for run in (RUN, again))
    assert first["test_ece"] == second["test_ece"] > 0


@pytest.mark.usefixtures("small_net")
def test_losses_are_the_same_to_the_last_bit_without_any_of_them(fit: Fit) -> None:
    often = [f"--{name}.every_n_epochs=1" for name in ("nearest_neighbours", "embedding_projector", "top_patches")]
    assert fit("--trainer.log_every_n_steps=1", *often) == 0
    assert fit("--trainer.log_every_n_steps=1", *(f"--{name}.enabled=false" for name in LOOKS)) == 0
    looked, blind = (load(RUN.with_name(f"version_{i}") / "checkpoints/last.ckpt") for i in (0, 1))
    assert all(torch.equal(looked[key], blind[key]) for key in looked)
    logs = [events(RUN.with_name(f"version_{i}")) for i in (0, 1)]
    for tag in ("train/loss_step", "train/loss", "val/loss", "test/loss"):
        losses = [[(e.step, e.value) for e in log.Scalars(tag)] for log in logs]
        assert losses[0] == losses[1]
    assert len(logs[0].Scalars("train/loss_step")) == 8
    assert [len(list(RUN.with_name(f"version_{i}").glob("*/*.png"))) for i in (0, 1)] == [23, 0]
    assert not [tag for tag in logs[1].Tags()["scalars"] if tag.split("/")[0] not in ("train", "val", "test", "epoch")]
    assert "ece" not in (RUN.with_name("version_1") / "summary.json").read_text()
