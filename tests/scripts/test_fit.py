"""``scripts/fit.py`` from the outside: what a run leaves behind, what it says, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, load
from helpers.small import UNSEEN
from helpers.small import small_net as small_net
from helpers.small_net import events
from PIL import Image
from running.flags import ALIASES, HELP

from callbacks import LOOKS
from lightning_modules import AlexNetClassifier

Fit = Callable[..., int]
RUN = Path("logs/alexnet-shapes10/version_0")
SAVE_DIR = "--trainer.logger.init_args.save_dir"


@pytest.mark.usefixtures("small_net")
def test_a_run_from_start_to_summary(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit() == 0
    out = capsys.readouterr().out
    assert (
        "data: shapes10 (drawn by this project; not CIFAR-10): 100 images to train on, 40 to validate, 60 to test"
        in out
    )
    assert f"run folder: {RUN}" in out

    summary = json.loads((RUN / "summary.json").read_text())
    assert {k: summary[k] for k in ("epochs", "images", "val_images", "test_images", "seed")} == {
        "epochs": 2,
        "images": 100,
        "val_images": 40,
        "test_images": 60,
        "seed": 0,
    }
    assert summary["command"].startswith("python scripts/fit.py fit --data.source=shapes10")
    assert f"{100 * summary['test_top1']:.2f} %" in (RUN / "summary.md").read_text()

    log = events(RUN)
    scalars = log.Tags()["scalars"]
    assert {f"{s}/{m}" for s in ("train", "val", "test") for m in ("loss", "top1", "top5")} <= set(scalars)
    assert log.Scalars("test/top1")[-1].value == pytest.approx(summary["test_top1"])
    assert log.Scalars("train/top1")[-1].value == pytest.approx(summary["train_top1"])
    assert max(e.value for e in log.Scalars("val/top1")) == pytest.approx(summary["val_top1"])
    assert b"not CIFAR-10" in log.Tensors("data/text_summary")[0].tensor_proto.string_val[0]
    assert {"filters/conv1", "retrieval/test"} <= set(log.Tags()["images"])
    for picture in (*RUN.glob("conv1_filters/*.png"), *RUN.glob("retrieval/*.png")):
        assert Image.open(picture).width > 100
    assert len(list(RUN.glob("conv1_filters/*.png"))) == 3  # before the first step, and after each of two epochs
    names = {p.name for p in RUN.glob("checkpoints/*")}
    assert {name for name in names if not name.endswith(".sha256")} == {"best.ckpt", "last.ckpt", "last.previous.ckpt"}
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["data"]["source"] == "shapes10"
    assert [p.name for p in Path().iterdir()] == ["logs"]

    # The checkpoint alone says what network and what data it was trained with: no other flag is needed.
    capsys.readouterr()
    as_before = ("--trainer.precision", "32-true")  # where the machine has bfloat16 the loss would be another
    assert fit("test", "--ckpt_path", str(RUN / "checkpoints/best.ckpt"), *as_before, small=False) == 0
    assert "model and data settings come from" in capsys.readouterr().out
    tested = json.loads((RUN.with_name("version_1") / "summary.json").read_text())
    assert events(RUN.with_name("version_1")).Scalars("test/top1")[-1].value == pytest.approx(summary["test_top1"])
    tops = [entry["val_top1"] for entry in summary["history"]]
    assert tested["epochs"] == (best := 1 + tops.index(max(tops)))
    assert [p.name for p in RUN.glob("retrieval/*.png")] == [f"test_epoch_{best:03d}.png"]  # after_fit is false
    for key in ("data", "test_images", "test_top1", "test_top5", "test_loss", "seed", "machine", "versions"):
        assert tested[key] == summary[key], key
    assert fit("validate", "--ckpt_path", "last", *as_before, small=False) == 0
    assert events(RUN.with_name("version_2")).Scalars("val/top1")[-1].value == pytest.approx(
        log.Scalars("val/top1")[-1].value
    )
    validated = json.loads((RUN.with_name("version_2") / "summary.json").read_text())
    assert (validated["val_images"], validated["val_top1"]) == (40, summary["history"][-1]["val_top1"])
    assert "test_top1" not in validated


@pytest.mark.usefixtures("small_net")
def test_the_summary_counts_the_formed_filters_of_the_weights_that_were_tested(fit: Fit) -> None:
    assert fit("--looks=false", "--trainer.max_epochs=1") == 0
    assert json.loads((RUN / "summary.json").read_text())["structured_filters"] == 0
    checkpoint = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)
    checkpoint["state_dict"]["net.conv1.weight"][:3] = torch.arange(11.0).cos()
    torch.save(checkpoint, RUN / "checkpoints/formed.ckpt")
    assert fit("test", "--looks=false", "--ckpt_path", str(RUN / "checkpoints/formed.ckpt")) == 0
    assert json.loads((RUN.with_name("version_1") / "summary.json").read_text())["structured_filters"] == 3


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize(
    ("words", "seen"),
    [
        ("--looks false", set()),
        ("--looks false --predictions.enabled true", {"predictions"}),
        ("--predictions.enabled false", set(LOOKS) - {"predictions"}),
        ("-c some.yaml --looks true", {"overview"}),
    ],
)
def test_one_switch_for_all_that_looks(fit: Fit, words: str, seen: set[str]) -> None:
    """And a single one's own, which wins whichever it says; what came of it is in the run's config."""
    Path("some.yaml").write_text(
        "".join(f"{key}: {{enabled: {key == 'overview'}}}\n" for key in LOOKS), encoding="utf-8"
    )
    assert fit(*words.split(), "--trainer.max_epochs", "1") == 0
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert {key for key in LOOKS if config[key]["enabled"]} == seen
    assert bool(list(RUN.glob("predictions/*.png"))) == ("predictions" in seen)


@pytest.mark.usefixtures("small_net")
def test_the_seed_decides(fit: Fit) -> None:
    for seed in (1, 1, 2):
        assert fit(*UNSEEN, "--seed_everything", str(seed), "--trainer.max_epochs", "1") == 0
    a, b, c = (load(RUN.with_name(f"version_{i}") / "checkpoints/last.ckpt")["net.conv1.weight"] for i in range(3))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_configs_and_flags_override_from_left_to_right(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.yaml").write_text("model: {lr: 0.5, momentum: 0.1}\n", encoding="utf-8")
    Path("two.yaml").write_text("model: {lr: 0.25}\ndata: {batch_size: 7}\n", encoding="utf-8")
    words = "-c one.yaml -c two.yaml --data.batch_size 9 --model.image_size 48 --seed_everything 4 --print_config"
    assert fit(*words.split(), small=False) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["model"]["lr"], config["model"]["momentum"], config["data"]["batch_size"]) == (0.25, 0.1, 9)
    assert config["trainer"]["max_epochs"] == 10
    assert "image_size" not in config["data"]  # it is the model's


@pytest.mark.parametrize("text", ["", " \n", "# nothing yet\n", "# rién\n"])
def test_a_config_without_values_says_nothing(fit: Fit, capsys: pytest.CaptureFixture[str], text: str) -> None:
    Path("empty.yaml").write_text(text, encoding="utf-8")
    assert fit("-c", "empty.yaml", "--print_config", small=False) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_epochs"] == 10


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_config_may_come_through_a_pipe(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``-c <(sed ... configs/paper.yaml)`` gives it, which can be read once."""
    os.mkfifo("pipe")
    threading.Thread(target=Path("pipe").write_text, args=("model: {lr: 0.125}\n",), daemon=True).start()
    assert fit("-c", "pipe", "--print_config", small=False) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["lr"] == 0.125


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_that_is_no_yaml_is_refused(refused: Callable[..., str]) -> None:
    os.mkfifo("pipe")
    threading.Thread(target=Path("pipe").write_text, args=("model: [",), daemon=True).start()
    assert "error: --config: " in refused("-c", "pipe")


def test_a_config_may_be_longer_than_a_file_s_name(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``-c "$(cat mine.yaml)"`` gives it."""
    text = "model: {lr: 0.125}\n" + "# a word of why\n" * 50
    assert fit("-c", text, "--print_config", small=False) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["lr"] == 0.125


def test_a_config_is_also_looked_for_beside_the_project(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """From whatever folder; one's own of that name comes first."""
    for epochs in (40, 7):
        assert fit("--config=configs/full.yaml", "--print_config", small=False) == 0
        assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_epochs"] == epochs
        Path("configs").mkdir(exist_ok=True)
        Path("configs/full.yaml").write_text("trainer: {max_epochs: 7}\n", encoding="utf-8")


CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_understood(fit: Fit, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("-c", str(config), "--print_config", small=False) == 0
    assert config.read_text(encoding="utf-8").startswith("# ")
    if config.parent.name == "configs":  # those in folders are laid over another
        words = "" if config.stem == "default" else f" -c configs/{config.name}"
        script = "ablate.py" if "ablations" in config.stem else "fit.py"
        assert f"python scripts/{script}{words}" in config.read_text(encoding="utf-8")


@pytest.mark.usefixtures("small_net")
def test_fast_dev_run_and_no_logger_leave_no_files_behind(fit: Fit) -> None:
    assert fit("--trainer.fast_dev_run", "true") == 0
    assert not list(Path().rglob("*.*"))
    assert fit("--trainer.logger", "false") == 0
    assert [p.name for p in Path().iterdir()] == ["logs"]


REFUSED = {
    "a misspelt key": ("--data.subset_siez 100", "--data.subset_siez"),
    "a misspelt subcommand": ("fitt", "error: fitt: no subcommand"),
    "processes that can't be sent the run": ("--trainer.strategy ddp_spawn", "--trainer.strategy: ddp_spawn, "),
    "no such config": ("-c nowhere.yaml", "nowhere.yaml"),
    "a config that is no YAML": ("-c broken.yaml", "--config: "),
    "a config that is no mapping": ("-c list.yaml", "--config: "),
    "a config that is no text": ("-c junk.ckpt", "--config: "),
    "subset_size -1": ("--data.subset_size -1", "--data.subset_size: -1"),
    "subset_size 0": ("--data.subset_size 0", "--data.subset_size: 0"),
    "subset_size 7": ("--data.subset_size 7", "--data.subset_size: 7"),
    "subset_size 10 million": ("--data.subset_size 10000000", "--data.subset_size: 10000000"),
    "val_size -10": ("--data.val_size -10", "--data.val_size: -10"),
    "val_size 7": ("--data.val_size 7", "--data.val_size: 7"),
    "more validation than there is": ("--data.val_size 1000", "--data.subset_size: 100"),
    "batch_size 0": ("--data.batch_size 0", "--data.batch_size: 0"),
    "batch_size 1.5": ("--data.batch_size 1.5", "--data.batch_size: "),
    "lr 0": ("--model.lr 0", "--model.lr: 0"),
    "lr -1": ("--model.lr -1", "--model.lr: -1"),
    "lr nan": ("--model.lr nan", "--model.lr: "),
    "lr inf": ("--model.lr inf", "--model.lr: "),
    "lr beyond a float": ("--model.lr 1e400", "--model.lr: inf"),
    "a word for a number": ("--model.lr fast", "--model.lr: "),
    "momentum 1": ("--model.momentum 1", "--model.momentum: 1"),
    "weight_decay -1": ("--model.weight_decay -1", "--model.weight_decay: -1"),
    "patience -1": ("--model.patience -1", "--model.patience: -1"),
    "milestones -3": ("--model.milestones [-3]", "--model.milestones: [-3]"),
    "lighting_std -1": ("--data.lighting_std -1", "--data.lighting_std: -1"),
    "crop_size 64": ("--data.crop_size 64", "--data.crop_size: 64"),
    "seed -1": ("--seed_everything -1", "--seed_everything: -1"),
    "no epochs": ("--trainer.max_epochs 0", "--trainer.max_epochs: 0"),
    "epochs without end": ("--trainer.max_epochs -1", "--trainer.max_epochs: -1"),
    "max_epochs -5": ("--trainer.max_epochs -5", "--trainer: `max_epochs`"),
    "max_epochs 1.5": ("--trainer.max_epochs 1.5", "--trainer.max_epochs: "),
    "k 0": ("--nearest_neighbours.k 0", "--nearest_neighbours.k: 0"),
    "every_n_epochs -1": ("--predictions.every_n_epochs -1", "--predictions.every_n_epochs: -1"),
    "nothing to choose by": ("--data.val_size 0", "--data.val_size: 0"),
    "no validation for plateau": (
        "--trainer.limit_val_batches 0 --model.schedule plateau",
        "--trainer.limit_val_batches: 0 leaves plateau nothing",
    ),
    "rare validation for plateau": (
        "--trainer.check_val_every_n_epoch 2 --model.schedule plateau",
        "--trainer.check_val_every_n_epoch: 2",
    ),
    "check_val_every_n_epoch 0": ("--trainer.check_val_every_n_epoch 0", "--trainer.check_val_every_n_epoch: 0"),
    "val_check_interval 0": ("--trainer.val_check_interval 0", "--trainer.val_check_interval: 0"),
    "validation after more batches than there are": (
        "--trainer.val_check_interval 5",
        "--trainer.val_check_interval: 5, but an epoch has 4 batches",
    ),
    "accumulate_grad_batches 0": ("--trainer.accumulate_grad_batches 0", "--trainer.accumulate_grad_batches: 0"),
    "no batches": ("--trainer.limit_train_batches 0", "--trainer.limit_train_batches: 0"),
    "less than a batch": ("--trainer.limit_train_batches 0.1", "--trainer.limit_train_batches: 0.1"),
    "less than a batch to validate": ("--trainer.limit_val_batches 0.4", "--trainer.limit_val_batches: 0.4"),
    "less than a batch to test": ("--trainer.limit_test_batches 0.4", "--trainer.limit_test_batches: 0.4"),
    "nobody logs it": (
        "--best_checkpoint.filename other --best_checkpoint.monitor val/acc",
        "--best_checkpoint.monitor: 'val/acc' is not logged",
    ),
    "calibration is switched off": (
        "--calibration.enabled false --best_checkpoint.monitor val/ece --best_checkpoint.mode min",
        "--best_checkpoint.monitor: 'val/ece' is not logged",
    ),
    "the best is the worst calibrated": (
        "--best_checkpoint.monitor val/ece",
        "--best_checkpoint.mode: max, but val/ece is better the lower it is. Set min.",
    ),
    "an accelerator that is not there": ("--trainer.accelerator tpu", "--trainer: "),
    "an address for a checkpoint's folder": (
        "--best_checkpoint.dirpath memory://x",
        "--best_checkpoint.dirpath: memory:",
    ),
    "an address for a log folder": (f"{SAVE_DIR} s3://x", f"{SAVE_DIR}: s3://x, expected a folder"),
    "an address for data": ("--data.root https://x/y", "--data.root: https://x/y"),
    "an address for a checkpoint": ("test --ckpt_path s3://x/a.ckpt", "--ckpt_path: s3://x/a.ckpt"),
    "a rate that one_cycle does not heed": (
        "--trainer.callbacks+=LearningRateFinder --model.schedule one_cycle",
        "--trainer.callbacks: LearningRateFinder sets a rate that one_cycle",
    ),
    "the same checkpoints twice": (
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks: ModelCheckpoint like one that is there already",
    ),
    "stopping by what nobody logs": (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val_loss",
        "--trainer.callbacks: EarlyStopping.monitor: 'val_loss' is not logged. Choose one of train/loss, ",
    ),
    "choosing by what a validation within an epoch comes before": (
        "--best_checkpoint.monitor train/top1 --trainer.val_check_interval 0.5",
        "--best_checkpoint.monitor: 'train/top1' is there at an epoch's end, later than",
    ),
    "choosing by an epoch's figures after every second one's validation": (
        "--best_checkpoint.monitor train/top1 --trainer.check_val_every_n_epoch 2",
        "--best_checkpoint.monitor: 'train/top1' is there at an epoch's end, later than",
    ),
    "stopping by what a validation within an epoch comes before": (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor train/loss --trainer.val_check_interval 2",
        "--trainer.callbacks: EarlyStopping.monitor: 'train/loss' is there at an epoch's end, later than",
    ),
    "choosing the highest loss": (
        "--best_checkpoint.monitor val/loss",
        "--best_checkpoint.mode: max, but val/loss is better the lower it is. Set min.",
    ),
    "stopping where accuracy rises": (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/top1",
        "--trainer.callbacks: EarlyStopping.mode: min, but val/top1 is better the higher it is. Set max.",
    ),
    "a size that one_cycle is laid out by": (
        "--trainer.callbacks+=BatchSizeFinder --model.schedule one_cycle",
        "--trainer.callbacks: BatchSizeFinder changes how many steps there are",
    ),
    "accumulation that one_cycle is not laid out by": (
        '--trainer.callbacks+=GradientAccumulationScheduler --trainer.callbacks.scheduling {"0":2} '
        "--model.schedule one_cycle",
        "--trainer.callbacks: GradientAccumulationScheduler changes how many steps there are",
    ),
    "accumulation said twice": (
        '--trainer.callbacks+=GradientAccumulationScheduler --trainer.callbacks.scheduling {"0":2} '
        "--model.schedule constant --trainer.accumulate_grad_batches 2",
        "--trainer.accumulate_grad_batches: 2, but GradientAccumulationScheduler sets it itself",
    ),
    "a backbone that is not there": (
        "--trainer.callbacks+=BackboneFinetuning",
        "--trainer.callbacks: BackboneFinetuning needs a model with a backbone",
    ),
    "filters of a layer that is not there": (
        "--conv1_filters.layer net.conv9",
        "--conv1_filters.layer: net.conv9 is not in AlexNetClassifier, expected a Conv2d of RGB filters",
    ),
    "nothing to test on": (
        "test --ckpt_path good.ckpt --trainer.limit_test_batches 0",
        "--trainer.limit_test_batches: 0",
    ),
    "less than a batch to test on": (
        "test --ckpt_path good.ckpt --trainer.limit_test_batches 0.1",
        "--trainer.limit_test_batches: 0.1 of them is not one batch",
    ),
    "nothing to score on": ("validate --ckpt_path good.ckpt --data.val_size 0", "--data.val_size: 0 leaves nothing"),
    "no batch to score on": (
        "validate --ckpt_path good.ckpt --trainer.limit_val_batches 0",
        "--trainer.limit_val_batches: 0 of them is not one batch",
    ),
    "stopping by a validation that is not": (
        "--data.val_size 0 --best_checkpoint.monitor null --trainer.callbacks+=EarlyStopping "
        "--trainer.callbacks.monitor val/loss",
        "--data.val_size: 0 leaves nothing to choose by. Set --trainer.callbacks: EarlyStopping.monitor null",
    ),
    "a monitor without a logger": (
        "--trainer.logger false --trainer.callbacks+=LearningRateMonitor",
        "--trainer.callbacks: LearningRateMonitor without a logger",
    ),
    "fewer classes than the data have": ("--model.num_classes 5", "--model.num_classes: 5, but the images are of 10"),
    "more classes than the data have": ("--model.num_classes 12", "--model.num_classes: 12, but the images are of 10"),
    "overfitting on less than a batch": ("--trainer.overfit_batches 0.1", "--trainer.overfit_batches: 0.1 of an epoch"),
    "a flag by its end": ("--epochs 3", "--epochs: unknown, perhaps --trainer.max_epochs was meant"),
    "a flag without its owner": ("--lr=3", "--lr=3: unknown, perhaps --model.lr was meant"),
    "a flag spelt otherwise": ("--data.batchsize 3", "--data.batchsize: unknown, perhaps --data.batch_size was meant"),
    "more processes than cores": (
        "--trainer.accelerator cpu --trainer.devices 1000",
        "--trainer.devices: 1000 processes, but this machine has ",
    ),
    "no data": ("--data.source cifar10 --data.root empty --data.download false", "--data.root: no CIFAR-10 in "),
    "test without a checkpoint": ("test", "--ckpt_path"),
    "predict without a checkpoint": ("predict --data.predict_folder empty", "--ckpt_path: `predict` without a"),
    "predict without pictures": ("predict --ckpt_path good.ckpt", "--data.predict_folder: none, expected a folder of"),
    "pictures for a network that does not say how": (
        "predict --ckpt_path good.ckpt --data.predict_folder empty",
        "good.ckpt: does not say what it does with an image",
    ),
    "validate without a checkpoint": ("validate", "--ckpt_path"),
    "a missing checkpoint": ("test --ckpt_path missing.ckpt", "missing.ckpt is no file"),
    "last of no run": ("test --ckpt_path last", "--ckpt_path last: no run"),
    "an empty checkpoint": ("test --ckpt_path empty.ckpt", "empty.ckpt: empty"),
    "half a checkpoint": ("test --ckpt_path half.ckpt", "half.ckpt: can't be read"),
    "a folder for a checkpoint": ("test --ckpt_path empty", "empty: no file"),
    "junk for a checkpoint": ("--ckpt_path junk.ckpt", "junk.ckpt: "),
    "a checkpoint that runs code": ("test --ckpt_path evil.ckpt", "evil.ckpt: holds more than tensors"),
    "a checkpoint that runs code, to go on": ("--ckpt_path evil.ckpt", "evil.ckpt: holds more than tensors"),
    "a checkpoint without weights": ("test --ckpt_path bare.ckpt", "bare.ckpt: has no state_dict"),
    "a file for a checkpoint's folder": ("--last_checkpoint.dirpath junk.ckpt/x", "junk.ckpt/x: can't be made"),
    "a file for a log folder": (f"{SAVE_DIR} junk.ckpt", "can't be made (Not a directory). Set --trainer.logger"),
    "a file for test's log folder": (f"test --ckpt_path good.ckpt {SAVE_DIR} junk.ckpt", "can't be made"),
    "a file for a root folder": (
        "--trainer.logger false --trainer.default_root_dir junk.ckpt/x",
        "can't be made (Not a directory). Set --trainer.default_root_dir",
    ),
    # It exists, and to root os.access says that it is writable.
    "a folder that can't be written to": ("--last_checkpoint.dirpath /proc/self/fdinfo", "fdinfo: can't be written to"),
}
BY_ALEXNET = {
    "image_size 16": ("--model.image_size 16", "--model.image_size: 16"),
    "image_size 0": ("--model.image_size 0", "image_size: 0"),
    "a network larger than memory": ("--model.image_size 100000", "--model: more weights than memory"),
    "a checkpoint of another network": (
        "test --ckpt_path other.ckpt",
        "other.ckpt: net.conv1.weight is (64, 3, 11, 11) in the checkpoint and (96, 3, 11, 11) in the model",
    ),
}


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("ran.txt", "w")


@pytest.fixture
def bad_files() -> None:
    Path("empty").mkdir()
    Path("empty.ckpt").touch()
    Path("broken.yaml").write_text("model: [1\n data: {", encoding="utf-8")
    Path("list.yaml").write_text("- 1\n- 2\n", encoding="utf-8")
    Path("junk.ckpt").write_bytes(b"\xff\xfenot a checkpoint" * 10)
    torch.save({"state_dict": Evil()}, "evil.ckpt")
    torch.save({"epoch": 3}, "bare.ckpt")
    torch.save({"state_dict": {"net.conv1.weight": torch.zeros(999)}}, "half.ckpt")
    Path("half.ckpt").write_bytes(Path("half.ckpt").read_bytes()[:2000])
    torch.save({"state_dict": {"net.conv1.weight": torch.zeros(64, 3, 11, 11)}}, "other.ckpt")


@pytest.mark.usefixtures("small_net", "bad_files")
@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_before_anything_is_written(refused: Callable[..., str], case: str) -> None:
    words, message = REFUSED[case]
    if "good.ckpt" in words:
        torch.save({"state_dict": AlexNetClassifier(image_size=24).state_dict()}, "good.ckpt")
    if "/proc" in words and not Path("/proc/self/fdinfo").is_dir():
        pytest.skip("no such folder here")
    assert message in refused(*words.split())


def test_a_logger_whose_package_is_missing(refused: Callable[..., str]) -> None:
    if importlib.util.find_spec("mlflow"):
        pytest.skip("it is installed")
    assert "--trainer: MLFlowLogger needs mlflow, which is not there" in refused("--trainer.logger=MLFlowLogger")


@pytest.mark.usefixtures("small_net")
def test_processes_that_know_nothing_of_each_other(
    fit: Fit, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``torchrun --nproc_per_node 2`` without ``--trainer.devices 2``, to train or to test."""
    assert fit("--looks=false", "--trainer.max_epochs=1") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in ([], ["test", "--ckpt_path=last"], ["validate", "--ckpt_path=last"]):
        assert "--trainer.devices: 1 in all, but 2 processes" in refused(*words)


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("--trainer.logger=false", "logs/config.yaml"),
        ("--trainer.logger.init_args.version=mine", "logs/alexnet-shapes10/mine/config.yaml"),
        ("--last_checkpoint.dirpath=kept", "kept/last.ckpt"),
    ],
)
def test_nothing_of_an_earlier_run_is_written_over(
    fit: Fit, refused: Callable[..., str], words: str, file: str
) -> None:
    """But by the run that goes on in its place."""
    few = ["--looks=false", "--trainer.max_epochs=1", words]
    assert fit(*few) == 0
    assert f"{file}: an earlier run's, expected a folder of this run's own" in refused(*few)
    if "version" not in words:
        assert fit(*few, "--ckpt_path=last") == 0
    if "logger=" in words:
        assert "logs/config.yaml: an earlier run's" in refused("test", "--ckpt_path=last", words)


@pytest.mark.usefixtures("small_net")
def test_the_best_in_training_without_validation(fit: Fit) -> None:
    assert fit("--data.val_size=0", "--best_checkpoint.monitor=train/top1", "--looks=false") == 0
    assert (RUN / "checkpoints/best.ckpt").is_file()


def test_help_starts_with_what_people_need(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--help", small=False) == 0
    short = capsys.readouterr().out
    assert fit("fit", "--help", small=False) == 0
    every = capsys.readouterr().out
    flags = set(re.findall(r"^  (--[\w.]+)", short, re.MULTILINE))
    assert {"--model.lr", "--trainer.max_epochs", "--ckpt_path"} <= flags
    assert all(flag in every for flag in flags)
    assert len(short.splitlines()) < 25 < len(every.splitlines())


def test_help_waits_for_no_import(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit(9)\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "scripts/fit.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (0, HELP, "")


def test_words_that_people_use_are_flags(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("fit", "--help", small=False) == 0
    assert set(ALIASES.values()) - {"--trainer.logger.init_args.name"} <= set(
        re.findall(r"--[\w.]+", capsys.readouterr().out)
    )


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("case", BY_ALEXNET)
def test_refused_by_the_network(refused: Callable[..., str], case: str) -> None:
    words, message = BY_ALEXNET[case]
    assert message in refused(*words.split())


@pytest.mark.parametrize("words", ["--data.batch_size=0", "--data.batch_size=x"])
def test_a_traceback_for_who_asks(
    fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setenv("TRACEBACK", "1")
    assert fit(words) == 2
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert said.splitlines()[-1].startswith("error: --data.batch_size: ")
