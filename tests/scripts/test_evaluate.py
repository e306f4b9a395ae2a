"""evaluate.py: the test split as fit.py tests it, what is made worse of it, other folders, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
from evaluate import Score, corruption_error
from helpers import error_line
from helpers.small import UNSEEN
from helpers.small import small_net as small_net
from PIL import Image

from datamodules import CIFAR10DataModule
from datamodules.corruptions import CORRUPTIONS

RUN = Path("logs/alexnet-shapes10/version_0")
CKPT = RUN / "checkpoints/best.ckpt"


@pytest.fixture
def trained(fit: Callable[..., int], small_net: None, capsys: pytest.CaptureFixture[str]) -> CIFAR10DataModule:
    """``CKPT``: the small network, trained on 100 images of shapes10; those."""
    assert fit(*UNSEEN, "--trainer.max_epochs=1", once="whole") == 0
    capsys.readouterr()
    return CIFAR10DataModule(source="shapes10", subset_size=100, val_size=40, image_size=24)


def run(*words: str) -> dict[str, Any]:
    evaluate.main(["--ckpt_path", str(CKPT), *words])
    found: dict[str, Any] = json.loads(Path("evaluation.json").read_text(encoding="utf-8"))
    return found


def test_the_test_split_is_scored_as_by_fit(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, targets = trained.images_in("test")
    Path("other").mkdir()
    np.save("other/v6_data.npy", images.permute(0, 2, 3, 1).numpy())
    np.save("other/v6_labels.npy", targets.numpy())
    monkeypatch.setattr(evaluate, "CLASSES", trained.class_names)  # shapes10's, for once
    found = run("--data", "other")
    summary = json.loads((RUN / "summary.json").read_text(encoding="utf-8"))
    test, *corrupted, other = found["scores"]
    assert (test["images"], test["strength"], test["size"]) == ("test", None, len(images))
    assert test["top1"] == pytest.approx(summary["test_top1"])
    assert test["top5"] == pytest.approx(summary["test_top5"])
    assert other == {**test, "images": "other"}
    kinds = [(score["images"], score["strength"]) for score in corrupted]
    assert kinds == [(kind, strength) for kind, (_, strengths) in CORRUPTIONS.items() for strength in strengths]
    with Path("evaluation.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["top1"]) for row in rows] == [score["top1"] for score in found["scores"]]
    assert Image.open("evaluation.png").width > 800
    assert "test, " in capsys.readouterr().out


def test_a_corruption_is_what_the_network_sees(trained: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of grey images a network says the same of all: as many are right as there are of one class."""
    grey = (lambda images, strength: torch.full_like(images, 128), (1, 2, 3, 4, 5))
    monkeypatch.setitem(evaluate.CORRUPTIONS, "noise", grey)
    found = run("--images", "50")
    assert {score["top1"] for score in found["scores"] if score["images"] == "noise"} == {0.1}
    assert {score["size"] for score in found["scores"]} == {50}


def test_against_itself_the_corruption_error_is_1(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run("--baseline", str(CKPT), "--images", "50")
    assert found["mean_corruption_error"] == 1
    assert found["baseline_scores"] == found["scores"]
    assert "mean corruption error: 100.0 % of the baseline's" in capsys.readouterr().out


def test_another_baseline_and_what_is_not_to_be_compared(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scored(checkpoints: list[Any], *_: Any) -> list[list[Score]]:
        assert [checkpoint.path for checkpoint in checkpoints] == [CKPT, Path("baseline.ckpt")]
        return [
            [
                Score("test", None, 100, top1, 1.0),
                *(Score(k, s, 100, top1, 1.0) for k in CORRUPTIONS for s in range(5)),
            ]
            for top1 in (0.8, 0.6)
        ]

    checkpoint = torch.load(CKPT, weights_only=True)
    torch.save(checkpoint, "baseline.ckpt")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "scores_of", scored)
        found = run("--baseline", "baseline.ckpt")
    assert {score["top1"] for score in found["baseline_scores"]} == {0.6}
    assert {score["top1"] for score in found["scores"]} == {0.8}
    assert found["mean_corruption_error"] == pytest.approx(0.2 / 0.4)

    names = checkpoint["CIFAR10DataModule"]["class_names"]
    checkpoint["CIFAR10DataModule"]["class_names"] = [name.upper() for name in names]
    torch.save(checkpoint, "others.ckpt")
    for words, wrong in ((["--baseline", "others.ckpt"], "--baseline: others.ckpt, of other classes than"),):
        with pytest.raises(SystemExit):
            evaluate.main(["--ckpt_path", str(CKPT), *words])
        assert wrong in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main(["--ckpt_path", "others.ckpt"])
    assert "has no images of DISC, RING and so on, which others.ckpt was trained on" in capsys.readouterr().err


def test_the_mean_corruption_error_by_hand() -> None:
    def scores(first: float, others: float) -> list[Score]:
        values = [(kind, s, first if kind == "noise" else others) for kind in CORRUPTIONS for s in range(5)]
        return [Score("test", None, 100, 0.9, 1.0), *(Score(k, s, 100, v, 1.0) for k, s, v in values)]

    # noise: half the errors; the four others: all of them
    assert corruption_error(scores(0.8, 0.5), scores(0.6, 0.5)) == pytest.approx((0.5 + 4 * 1) / 5)
    assert corruption_error(scores(1.0, 1.0), scores(1.0, 1.0)) == 0


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--images", "0"], "--images: 0, expected 1 or more"),
        (["--out", "a.png"], "--out: a.png, expected a file that ends in .json"),
        (["--out", "no/a.json"], "--out: no/a.json, expected a file in a folder that is there"),
        (["--out", "mine.json"], "--out: mine.json is"),
        (["--data", "nowhere"], "--data: nowhere, expected a folder of images"),
        (["--data", "empty"], "--data: empty holds no images that are read"),
        (["--data", "blur"], "--data: blur, expected another name"),
        (["--data", "a/blur", "blur"], "--data: two folders of one name"),
        (["--ckpt_path", "nowhere.ckpt"], "--ckpt_path: nowhere.ckpt is no file"),
        (["--baseline", "nowhere.ckpt"], "--baseline: nowhere.ckpt is no file"),
        (["--baseline", "huge.ckpt"], "huge.ckpt: probabilities are NaN, expected finite ones"),
    ],
)
def test_refusals_take_one_line(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str], words: list[str], wrong: str
) -> None:
    for name in ("empty", "blur", "a/blur"):
        Path(name).mkdir(parents=True)
        if "blur" in name:
            np.save(f"{name}/a_data.npy", np.zeros((1, 32, 32, 3), np.uint8))
            np.save(f"{name}/a_labels.npy", np.zeros(1, np.int64))
    Path("mine.json").write_text("{}", encoding="utf-8")
    huge = torch.load(CKPT, weights_only=True)  # finite weights, of which come infinite logits
    huge["state_dict"] = {name: torch.full_like(weights, 3e38) for name, weights in huge["state_dict"].items()}
    torch.save(huge, "huge.ckpt")
    with pytest.raises(SystemExit) as exit_:
        evaluate.main(["--ckpt_path", str(CKPT), *words])
    assert exit_.value.code == 2
    assert wrong in error_line(capsys.readouterr().err)
    assert not Path("evaluation.json").exists()
