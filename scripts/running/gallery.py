"""A checkpoint's network with its data, and the training images' features, which are kept."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from callbacks.checkpoints.files import damage, load_plain, read_regular, sidecar, write_checkpoint
from callbacks.checkpoints.structure import all_finite, kind
from callbacks.pure.heat import grad_cam
from datamodules import CIFAR10DataModule
from datamodules.cifar10 import RawBatch, View
from lightning_modules import AlexNetClassifier
from running.checkpoint import Checkpoint
from running.errors import printable, reason


def load(checkpoint: Checkpoint, root: str, test_crops: int) -> tuple[AlexNetClassifier, CIFAR10DataModule]:
    """Make a checkpoint's network, ready to look at images, and its data, which are not read; or refuse in one line.

    Args:
        checkpoint: What ``fit.py`` wrote.
        root: Folder with CIFAR-10.
        test_crops: 1 or 10.
    """
    checkpoint.check_complete()
    checkpoint.check_settings()
    model = checkpoint.network()
    # Model and data agree on the size, so it is kept once.
    ours = {"image_size": model.net.image_size, "root": root, "download": False, "test_crops": test_crops}
    datamodule = CIFAR10DataModule(**{**checkpoint.settings["data"], **ours})
    datamodule.load_state_dict(checkpoint.statistics or {})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device), datamodule


def check_same_classes(checkpoint: Checkpoint, datamodule: CIFAR10DataModule) -> None:
    """Raise a ValueError if the data that are found are of other classes than the checkpoint tells of.

    With ``source: auto`` they may be shapes10's where CIFAR-10 is not found.
    """
    told = (checkpoint.statistics or {}).get("class_names")
    if told and told != list(datamodule.class_names):
        wrong = (
            f"{datamodule.root} has no images of {told[0]}, {told[1]} and so on, which {checkpoint.path} was trained on"
        )
        raise ValueError(f"root: {wrong}. Name another folder.")


def inputs_of(model: AlexNetClassifier, datamodule: CIFAR10DataModule, images: Tensor, view: View) -> Tensor:
    """Raw images ``(N, 3, 32, 32)`` uint8 as the network takes them, by the DataModule's own path for a test image."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    inputs: Tensor = datamodule.on_after_batch_transfer(RawBatch(images.to(model.device), labels, labels, view), 0)[0]
    return inputs


@torch.inference_mode()
def probabilities_of(model: AlexNetClassifier, datamodule: CIFAR10DataModule, images: Tensor) -> Tensor:
    """What the network says of raw images, of one crop or ten: ``(N, C)`` float32 on the CPU."""
    view: View = "ten_crops" if datamodule.test_crops == 10 else "centre"
    chunks = images.split(max(1, datamodule.batch_size // datamodule.test_crops))
    said = [model.log_probabilities(inputs_of(model, datamodule, chunk, view)).exp().float().cpu() for chunk in chunks]
    return torch.cat(said)


def seen_and_heat(
    model: AlexNetClassifier, datamodule: CIFAR10DataModule, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """What the network sees of raw images, RGB ``(N, 3, H, W)`` in ``[0, 1]``, and :func:`grad_cam` for the labels."""
    inputs, labels = inputs_of(model, datamodule, images, "centre"), labels.to(model.device)
    return datamodule.to_rgb(inputs).cpu(), grad_cam(model.log_probabilities, model.net, inputs, labels)


@torch.inference_mode()
def embed(model: AlexNetClassifier, datamodule: CIFAR10DataModule, images: Tensor, bar: str = "") -> Tensor:
    """fc7 of raw images, through the DataModule's own path for a test image.

    Args:
        model: In evaluation mode.
        datamodule: With the checkpoint's statistics.
        images: ``(N, 3, 32, 32)`` uint8.
        bar: What a progress bar says; empty for none.

    Returns:
        ``(N, D)`` float32 on the CPU.
    """
    chunks = tqdm(images.split(datamodule.batch_size), desc=bar, disable=None if bar else True, leave=False)
    parts = [model.embed(inputs_of(model, datamodule, chunk, "centre")).flatten(1).float().cpu() for chunk in chunks]
    return torch.cat(parts)


def gallery_digest(datamodule: CIFAR10DataModule, indices: Tensor, images: Tensor, device: str) -> str:
    """SHA-256 of all that the gallery's features depend on beside the checkpoint.

    Args:
        datamodule: What is done with an image.
        indices: ``(G,)`` int64 places of the images in the training split.
        images: ``(G, 3, 32, 32)`` uint8.
        device: Where they are embedded: a GPU rounds otherwise.
    """
    how = {key: getattr(datamodule, key) for key in ("crop_size", "image_size", "input_scale")}
    digest = hashlib.sha256(json.dumps([how, device, torch.__version__], sort_keys=True).encode())
    for tensor in (indices, images, *datamodule.statistics):
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def cache_folder(path: Path) -> Path:
    """``retrieval_cache`` in the run's folder; beside a checkpoint that lies elsewhere."""
    folder = path.resolve().parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "retrieval_cache"


def read_cache(path: Path, key: str, shape: tuple[int, int]) -> Tensor | None:
    """Features ``shape`` (G, D) that were kept under ``key``; None, and a line on stderr, where they are damaged."""
    if not path.is_file():
        return None
    wrong = damage(path) if sidecar(path).is_file() else "no SHA-256 beside it"
    if wrong is None:
        try:
            kept = load_plain(read_regular(path))
            features: Tensor = kept["features"]
            fits = kept["key"] == key and kind(features) == shape and features.dtype == torch.float32
            if fits and all_finite(features):
                return features.contiguous()
            wrong = "of other images"
        except Exception as error:  # whatever it holds in place of features
            wrong = f"no features ({type(error).__name__})"
    print(printable(f"{path}: {wrong}; embedding the training images anew"), file=sys.stderr)
    return None


def features_of(
    model: AlexNetClassifier, datamodule: CIFAR10DataModule, ckpt_path: Path, images: Tensor, width: int
) -> tuple[Tensor, bool]:
    """The training images' fc7 ``(G, width)`` float32, from the cache if it has them, and whether it had."""
    digest = gallery_digest(datamodule, datamodule.split.train, images, model.device.type)
    key = f"{hashlib.sha256(ckpt_path.read_bytes()).hexdigest()} {digest}"
    path = cache_folder(ckpt_path) / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.pt"
    kept = read_cache(path, key, (len(images), width))
    if kept is not None:
        return kept, True
    features = embed(model, datamodule, images, "embedding the training images")
    try:
        if path.parent.is_symlink():  # to a folder of other files, maybe
            raise OSError(0, "its folder is a link")
        write_checkpoint({"key": key, "features": features}, path)
    except OSError as error:
        why = reason(error.__cause__ or error)
        print(printable(f"{path}: can't be written ({why}); the next time takes as long"), file=sys.stderr)
    return features, False
