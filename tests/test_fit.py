"""``scripts/fit.py`` from the outside: what a run leaves behind, what it says, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import load
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Fit = Callable[..., int]
RUN = Path("logs/alexnet-shapes10/version_0")


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


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
    assert [p.name for p in RUN.glob("retrieval/*.png")] == ["test_epoch_002.png"]  # after_fit is false
    names = {p.name for p in RUN.glob("checkpoints/*")}
    assert {name for name in names if not name.endswith(".sha256")} == {"best.ckpt", "last.ckpt", "last.previous.ckpt"}
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["data"]["source"] == "shapes10"
    assert [p.name for p in Path().iterdir()] == ["logs"]

    # The checkpoint alone says what network and what data it was trained with: no other flag is needed.
    capsys.readouterr()
    assert fit("test", "--ckpt_path", str(RUN / "checkpoints/best.ckpt"), small=False) == 0
    assert "model and data settings come from" in capsys.readouterr().out
    assert events(RUN.with_name("version_1")).Scalars("test/top1")[-1].value == pytest.approx(summary["test_top1"])
    assert fit("validate", "--ckpt_path", "last", small=False) == 0
    assert events(RUN.with_name("version_2")).Scalars("val/top1")[-1].value == pytest.approx(
        log.Scalars("val/top1")[-1].value
    )


CALLBACKS = (
    "conv1_filters",
    "nearest_neighbours",
    "predictions",
    "confusion_matrix",
    "activation_stats",
    "embedding_projector",
    "overview",
    "training_health",
)


def test_callbacks_only_look(fit: Fit) -> None:
    assert fit("--nearest_neighbours.every_n_epochs", "1") == 0
    assert fit(*(f"--{name}.enabled=false" for name in CALLBACKS)) == 0
    looked, blind = (load(RUN.with_name(f"version_{i}") / "checkpoints/last.ckpt") for i in (0, 1))
    assert all(torch.equal(looked[key], blind[key]) for key in looked)
    assert not list(RUN.with_name("version_1").glob("*/*.png"))


def test_a_run_goes_on_as_if_it_had_not_stopped(fit: Fit) -> None:
    assert fit("--model.schedule", "constant") == 0
    assert fit("--model.schedule", "constant", "--trainer.max_epochs", "1") == 0
    stopped = RUN.with_name("version_1") / "checkpoints/last.ckpt"
    assert fit("--ckpt_path", str(stopped), "--trainer.max_epochs", "2") == 0
    whole, resumed = (load(RUN.with_name(f"version_{i}") / "checkpoints/last.ckpt") for i in (0, 2))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not all(torch.equal(whole[key], value) for key, value in load(stopped).items())


def test_the_seed_decides(fit: Fit) -> None:
    for seed in (1, 1, 2):
        assert fit("--seed_everything", str(seed), "--trainer.max_epochs", "1") == 0
    a, b, c = (load(RUN.with_name(f"version_{i}") / "checkpoints/last.ckpt")["net.conv1.weight"] for i in range(3))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_configs_and_flags_override_from_left_to_right(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.yaml").write_text("model: {lr: 0.5, momentum: 0.1}\n")
    Path("two.yaml").write_text("model: {lr: 0.25}\ndata: {batch_size: 7}\n")
    words = "-c one.yaml -c two.yaml --data.batch_size 9 --model.image_size 48 --seed_everything 4 --print_config"
    assert fit(*words.split(), small=False) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["model"]["lr"], config["model"]["momentum"], config["data"]["batch_size"]) == (0.25, 0.1, 9)
    assert config["trainer"]["max_epochs"] == 10
    assert "image_size" not in config["data"]  # it is the model's


CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("**/*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_understood(fit: Fit, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("-c", str(config), "--print_config", small=False) == 0
    assert config.read_text().startswith("# ")
    assert (
        f"python scripts/fit.py{'' if config.stem == 'default' else f' -c configs/{config.name}'}" in config.read_text()
    )


def test_fast_dev_run_and_no_logger_leave_no_files_behind(fit: Fit) -> None:
    assert fit("--trainer.fast_dev_run", "true") == 0
    assert not list(Path().rglob("*.*"))
    assert fit("--trainer.logger", "false") == 0
    assert [p.name for p in Path().iterdir()] == ["logs"]


REFUSED = {
    "a misspelt key": ("--data.subset_siez 100", "--data.subset_siez"),
    "a misspelt subcommand": ("fitt", "fitt"),
    "no such config": ("-c nowhere.yaml", "nowhere.yaml"),
    "subset_size -1": ("--data.subset_size -1", "--data.subset_size: -1"),
    "subset_size 0": ("--data.subset_size 0", "--data.subset_size: 0"),
    "subset_size 7": ("--data.subset_size 7", "--data.subset_size: 7"),
    "subset_size 10 million": ("--data.subset_size 10000000", "--data.subset_size: 10000000"),
    "batch_size 0": ("--data.batch_size 0", "--data.batch_size: 0"),
    "image_size 16": ("--model.image_size 16", "image_size: 16"),
    "lr 0": ("--model.lr 0", "--model.lr: 0"),
    "a word for a number": ("--model.lr fast", "model.lr"),
    "no epochs": ("--trainer.max_epochs 0", "--trainer.max_epochs: 0"),
    "epochs without end": ("--trainer.max_epochs -1", "--trainer.max_epochs: -1"),
    "nothing to choose by": ("--data.val_size 0", "--data.val_size: 0"),
    "val_size -10": ("--data.val_size -10", "--data.val_size: -10"),
    "val_size 7": ("--data.val_size 7", "--data.val_size: 7"),
    "more validation than there is": ("--data.val_size 1000", "--data.subset_size: 100"),
    "lr nan": ("--model.lr nan", "--model.lr"),
    "no validation for plateau": (
        "--trainer.limit_val_batches 0 --model.schedule plateau",
        "--trainer.limit_val_batches: 0 leaves plateau nothing",
    ),
    "no batches": ("--trainer.limit_train_batches 0", "--trainer.limit_train_batches: 0"),
    "nobody logs it": ("--best_checkpoint.monitor val/acc", "--best_checkpoint.monitor: 'val/acc' is not logged"),
    "an accelerator that is not there": ("--trainer.accelerator tpu", "--trainer: "),
    "no data": ("--data.source cifar10 --data.root empty --data.download false", "--data.root: no CIFAR-10 in "),
    "test without a checkpoint": ("test", "--ckpt_path"),
    "validate without a checkpoint": ("validate", "--ckpt_path"),
    "a missing checkpoint": ("test --ckpt_path missing.ckpt", "missing.ckpt is no file"),
    "last of no run": ("test --ckpt_path last", "--ckpt_path last: no run"),
    "an empty checkpoint": ("test --ckpt_path empty.ckpt", "empty.ckpt: empty"),
    "half a checkpoint": ("test --ckpt_path half.ckpt", "half.ckpt: can't be read"),
    "a folder for a checkpoint": ("test --ckpt_path empty", "empty: no file"),
    "a file for a checkpoint's folder": ("--last_checkpoint.dirpath junk.ckpt/x", "junk.ckpt/x: can't be made"),
    "junk for a checkpoint": ("test --ckpt_path junk.ckpt", "junk.ckpt: "),
    "a checkpoint that runs code": ("test --ckpt_path evil.ckpt", "evil.ckpt: holds more than tensors"),
    "a checkpoint without weights": ("test --ckpt_path bare.ckpt", "bare.ckpt: has no state_dict"),
    "a checkpoint of another network": (
        "test --ckpt_path other.ckpt",
        "other.ckpt: net.conv1.weight is (64, 3, 11, 11)",
    ),
    "k 0": ("--nearest_neighbours.k 0", "k"),
    "a file for a log folder": ("--trainer.logger.init_args.save_dir junk.ckpt", "junk.ckpt"),
}


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("ran.txt", "w")


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_before_anything_is_written(
    fit: Fit, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    Path("empty").mkdir()
    Path("empty.ckpt").touch()
    Path("junk.ckpt").write_bytes(b"not a checkpoint" * 10)
    torch.save({"state_dict": Evil()}, "evil.ckpt")
    torch.save({"epoch": 3}, "bare.ckpt")
    torch.save({"state_dict": {"net.conv1.weight": torch.zeros(999)}}, "half.ckpt")
    Path("half.ckpt").write_bytes(Path("half.ckpt").read_bytes()[:2000])
    torch.save({"state_dict": {"net.conv1.weight": torch.zeros(64, 3, 11, 11)}}, "other.ckpt")
    before = sorted(Path().rglob("*"))
    words, message = REFUSED[case]
    assert fit(*words.split()) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(Path().rglob("*")) == before


@pytest.mark.slow
def test_two_processes_agree_with_one(fit: Fit, request: pytest.FixtureRequest) -> None:
    """The same checkpoint tested by one process and by two: each image counted once, pictures written once."""
    import subprocess
    import sys

    assert fit() == 0
    script = request.config.rootpath / "scripts/fit.py"
    words = ["test", "--ckpt_path", str(RUN / "checkpoints/best.ckpt")]
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    tops = []
    for extra in ([], two):
        done = subprocess.run([sys.executable, script, *words, *extra], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        newest = max(RUN.parent.iterdir(), key=lambda p: int(p.name.split("_")[1]))
        tops.append([events(newest).Scalars(f"test/{m}")[-1].value for m in ("top1", "top5", "loss", "retrieval_p5")])
        assert len(list(newest.glob("retrieval/*.png"))) == 1
    assert tops[0] == pytest.approx(tops[1], abs=1e-6)
