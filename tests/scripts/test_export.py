"""A trained network elsewhere: by torch.hub, and as one file of each format, against the run's own test path."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import export
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, error_line
from helpers.small import UNSEEN
from PIL import Image
from running.outputs import check_output

from datamodules import CIFAR10DataModule, shapes10, sources
from datamodules.photos import read_photo
from lightning_modules import AlexNet, AlexNetClassifier

Fit = Callable[..., int]
CKPT = Path("logs/alexnet-shapes10/version_0/checkpoints/best.ckpt")
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
SIZES = [(20, 20), (48, 64), (64, 48), (31, 90), (500, 375)]


@pytest.fixture
def checkpoint(fit: Fit, capsys: pytest.CaptureFixture[str]) -> Path:
    """The smallest network, as ``he`` has it after four steps: its probabilities differ from image to image."""
    words = ["--model.conv1_stride=2", "--model.init=he", "--data.crop_size=28", "--data.crop_padding=0"]
    assert fit(*UNSEEN, *words, "--trainer.max_epochs=1", once="taken away") == 0
    capsys.readouterr()
    return CKPT


def hub(checkpoint: Path) -> torch.nn.Module:
    model: torch.nn.Module = torch.hub.load(str(ROOT), "alexnet_cifar10", checkpoint=str(checkpoint), source="local")
    return model


def pictures() -> torch.Tensor:
    return shapes10.draw_shapes10("test")[0]  # small: 6 a class


def photos() -> list[torch.Tensor]:
    return [F.interpolate(pictures()[::9], size) for size in SIZES]


@torch.no_grad()
def on_the_runs_path(checkpoint: Path) -> torch.Tensor:
    """What ``fit.py test`` computes of the test split, by Lightning's own loading."""
    model = AlexNetClassifier.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    data = CIFAR10DataModule.load_from_checkpoint(checkpoint)
    data.load_state_dict(torch.load(checkpoint, weights_only=True)["CIFAR10DataModule"])
    return torch.cat([model.predict_step(batch, 0) for batch in data.predict_dataloader()])


def exported(checkpoint: Path, *words: str) -> int:
    try:
        export.main(["--ckpt_path", str(checkpoint), *words])
    except SystemExit as exit_:
        return int(str(exit_.code))
    return 0


# ---- the module --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_images_of_the_data_set_s_size_come_out_as_in_the_run_s_test(checkpoint: Path) -> None:
    model, expected = hub(checkpoint), on_the_runs_path(checkpoint)
    assert not model.training
    assert model.class_names == shapes10.CLASSES
    assert expected.std(0).max() > 0.01  # not the same for every image
    torch.testing.assert_close(model(pictures()), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(pictures().float() / 255), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("size", [(70, 101), (333, 64), (20, 20)])
def test_photos_come_out_as_predict_reads_them(checkpoint: Path, size: tuple[int, int]) -> None:
    model, photo = hub(checkpoint), torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save("a.png")
    assert torch.equal(model(photo[None]), model(read_photo(Path("a.png"))[None]))
    torch.testing.assert_close(model(photo[None].float() / 255), model(photo[None]), rtol=0, atol=0.02)
    with pytest.raises(ValueError, match=r"images: \(1, 1, 32, 32\), expected \(B, 3, H, W\)"):
        model(torch.zeros(1, 1, 32, 32))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_says_nearly_the_same(checkpoint: Path, dtype: torch.dtype) -> None:
    model = hub(checkpoint)
    expected = model(pictures())
    found = model.to(dtype)(pictures())
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)


def test_a_checkpoint_from_before_the_class_names(checkpoint: Path, fit: Fit) -> None:
    contents = torch.load(checkpoint, weights_only=True)
    assert contents["CIFAR10DataModule"].pop("class_names") == list(shapes10.CLASSES)
    torch.save(contents, "older.ckpt")
    assert fit("test", "--looks=false", "--ckpt_path=older.ckpt", small=False) == 0
    assert hub(Path("older.ckpt")).class_names == shapes10.CLASSES
    for source, names in {"cifar10": sources.CLASSES, "auto": tuple("0123456789")}.items():
        contents["datamodule_hyper_parameters"]["source"] = source
        torch.save(contents, "older.ckpt")
        assert hub(Path("older.ckpt")).class_names == names


def test_a_checkpoint_that_can_t_be_used_is_a_value_error(checkpoint: Path) -> None:
    contents = torch.load(checkpoint, weights_only=True)
    contents["CIFAR10DataModule"]["class_names"] = [1]
    torch.save(contents, "odd.ckpt")
    with pytest.raises(ValueError, match="class_names: no names, expected a list of them"):
        hub(Path("odd.ckpt"))
    contents["CIFAR10DataModule"] = {"mean": torch.zeros(3)}
    torch.save(contents, "odd.ckpt")
    with pytest.raises(ValueError, match="eigvals: missing or unknown, expected mean, std, eigvecs, eigvals"):
        hub(Path("odd.ckpt"))
    with pytest.raises(ValueError, match=r"checkpoint: none.ckpt is no file"):
        hub(Path("none.ckpt"))


@pytest.mark.slow
def test_torch_hub_in_a_fresh_process(checkpoint: Path) -> None:
    script = f"""
import sys, torch
path = list(sys.path)
net = torch.hub.load({str(ROOT)!r}, "alexnet", num_classes=7, image_size=24, conv1_stride=2, source="local")
assert net.fc8.out_features == 7
model = torch.hub.load({str(ROOT)!r}, "alexnet_cifar10", checkpoint={str(checkpoint)!r}, source="local")
assert sys.path == path and not model.training
assert model(torch.zeros(2, 3, 50, 40, dtype=torch.uint8)).shape == (2, len(model.class_names))
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_onnxruntime_gives_the_network_s_probabilities(checkpoint: Path, dtype: str) -> None:
    pytest.importorskip("onnxscript", reason="needs pip install -e '.[export]'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install -e '.[export]'")
    assert exported(checkpoint, "--format=onnx", f"--dtype={dtype}") == 0
    session = onnxruntime.InferenceSession("alexnet.onnx", providers=["CPUExecutionProvider"])
    model, in_the_run = hub(checkpoint), on_the_runs_path(checkpoint)
    batches = [pictures(), pictures()[:1], *photos()]
    if dtype == "float32":
        batches = [images.float() / 255 for images in batches]
    for images, expected in zip(batches, [in_the_run, in_the_run[:1], *map(model, batches[2:])], strict=True):
        (found,) = session.run(["probabilities"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, **CLOSE)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == list(shapes10.CLASSES)
    check_output("--output", Path("alexnet.onnx"), export.SOFTWARE[1])  # another may be written over it


@pytest.mark.slow
@torch.no_grad()
def test_an_exported_program_runs_without_the_project(checkpoint: Path) -> None:
    assert exported(checkpoint, "--format=pt2", "--output=there.pt2") == 0
    check_output("--output", Path("there.pt2"), export.SOFTWARE[1])  # another may be written over it
    torch.save([pictures(), pictures()[:1], *photos()], "images.pt")
    script = """
import sys, torch
about = {"class_names": ""}
program = torch.export.load("there.pt2", extra_files=about).module()
torch.save([[program(images) for images in torch.load("images.pt")], about["class_names"]], "found.pt")
assert not {"lightning_modules", "datamodules", "running", "lightning"} & {*sys.modules}
"""
    subprocess.run([sys.executable, "-I", "-c", script], check=True)
    found, names = torch.load("found.pt")
    expected = on_the_runs_path(checkpoint)
    torch.testing.assert_close(found, [expected, expected[:1], *map(hub(checkpoint), photos())], **CLOSE)
    assert json.loads(names) == list(shapes10.CLASSES)


def test_safetensors_hold_the_network_s_weights(checkpoint: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="needs pip install -e '.[export]'")
    assert exported(checkpoint, "--format=safetensors") == 0
    with safetensors.safe_open("alexnet.safetensors", "pt") as file:
        about, weights = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    AlexNet(**json.loads(about["network"])).load_state_dict(weights)
    contents = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(weight, contents["state_dict"][f"net.{key}"]) for key, weight in weights.items())
    assert json.loads(about["class_names"]) == list(shapes10.CLASSES)
    assert json.loads(about["mean"]) == contents["CIFAR10DataModule"]["mean"].tolist()
    assert (json.loads(about["crop_size"]), json.loads(about["image_size"])) == (28, 24)


def test_a_file_that_differs_is_not_left(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other(model: torch.nn.Module, *_: object) -> tuple[bytes, export.Run]:
        return b"", lambda images: model(images).roll(1, 1)

    monkeypatch.setitem(export.FORMATS, "pt2", other)
    assert exported(checkpoint, "--format=pt2") == 1
    assert "alexnet.pt2: its probabilities differ from the network's by" in error_line(capsys.readouterr().err)
    assert not Path("alexnet.pt2").exists()


def test_refused_in_one_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str, ckpt: Path = checkpoint) -> str:
        assert exported(ckpt, *words) == 2
        return error_line(capsys.readouterr().err)

    Path("mine.pt2").write_text("a novel", encoding="utf-8")
    assert "mine.pt2 is there and not this script's own" in refused("--format=pt2", "--output=mine.pt2")
    assert Path("mine.pt2").read_text(encoding="utf-8") == "a novel"
    assert "--output: a.onnx, expected a file that ends in .pt2" in refused("--format=pt2", "--output=a.onnx")
    assert "expected a file in a folder that is there" in refused("--format=pt2", "--output=none/a.pt2")
    assert "--ckpt_path: none.ckpt is no file" in refused("--format=pt2", ckpt=Path("none.ckpt"))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    missing = (
        "--format: safetensors, which needs safetensors, expected it installed. Install it: pip install -e '.[export]'"
    )
    assert missing in refused("--format=safetensors")
