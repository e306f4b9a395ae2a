"""A checkpoint's network with its data, and the training images with their features, which are kept."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from callbacks.checkpoints.files import damage, load_plain, open_intact, sidecar, write_checkpoint
from callbacks.checkpoints.structure import all_finite, kind
from callbacks.pure.heat import grad_cam
from datamodules import CIFAR10DataModule, shapes10
from datamodules.cifar10 import RawBatch, View
from datamodules.sources import official
from lightning_modules import AlexNetClassifier
from running.checkpoint import Checkpoint
from running.errors import printable, reason, refuse


class Gallery(NamedTuple):
    """The training images in use, among which neighbours are looked for."""

    features: Tensor  # (G, D) float32: fc7
    places: Tensor  # (G,) int64, in the training split
    images: Tensor  # (G, 3, 32, 32) uint8
    targets: Tensor  # (G,) int64


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
def probabilities_of(
    checkpoint: Checkpoint, model: AlexNetClassifier, datamodule: CIFAR10DataModule, images: Tensor
) -> Tensor:
    """What a checkpoint's network says of raw images, of one crop or ten: ``(N, C)`` float32 on the CPU."""
    view: View = "ten_crops" if datamodule.test_crops == 10 else "centre"
    chunks = images.split(max(1, datamodule.batch_size // datamodule.test_crops))
    said = [model.log_probabilities(inputs_of(model, datamodule, chunk, view)).exp().float().cpu() for chunk in chunks]
    probabilities = torch.cat(said)
    checkpoint.check_probabilities(probabilities)
    return probabilities


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


def gallery_digest(datamodule: CIFAR10DataModule, device: str) -> str:
    """SHA-256 of all that the gallery depends on beside the checkpoint.

    Some images are known unread: the official files, which are refused unless they have their MD5s, and shapes10, which
    follows from its source to the last byte. Of all others it is the images themselves that tell.

    Args:
        datamodule: Which images, and what is done with one.
        device: Where they are embedded: a GPU rounds otherwise.
    """
    names = ("crop_size", "image_size", "input_scale", "subset_size", "val_size", "split_seed")
    how = {name: getattr(datamodule, name) for name in names}
    digest = hashlib.sha256(json.dumps([how, device, torch.__version__], sort_keys=True).encode())
    tensors = [*datamodule.statistics]
    if datamodule.layout is None:
        digest.update(Path(shapes10.__file__).read_bytes())
    elif datamodule.layout.kind in ("batches", "archive"):
        digest.update(json.dumps(official.BATCH_MD5S["train"]).encode())
    else:
        places = datamodule.split.train
        tensors += [places, *(values[places] for values in datamodule.images_in("train"))]
    for tensor in tensors:
        digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.hexdigest()


def cache_folder(path: Path) -> Path:
    """``retrieval_cache`` in the run's folder; beside a checkpoint that lies elsewhere."""
    folder = path.resolve().parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "retrieval_cache"


def read_cache(path: Path, key: str, width: int) -> Gallery | None:
    """The gallery that was kept under ``key``, its features ``(G, width)``; None, and a line on stderr, if damaged."""
    if not path.is_file():
        return None
    wrong = None if sidecar(path).is_file() else "no SHA-256 beside it"
    try:
        if wrong is None:
            kept = load_plain(open_intact(path).contents)
            gallery = Gallery(*(kept[name] for name in Gallery.__annotations__))
            found, count = [(kind(tensor), tensor.dtype) for tensor in gallery], len(gallery.places)
            shapes = (count, width), (count,), (count, 3, 32, 32), (count,)
            kinds = [*zip(shapes, (torch.float32, torch.int64, torch.uint8, torch.int64), strict=True)]
            if kept["key"] == key and found == kinds and all_finite(gallery.features):
                return gallery
            wrong = "of other images"
    except Exception as error:  # whatever it holds in place of a gallery
        wrong = damage(path) or f"no features ({type(error).__name__})"
    print(printable(f"{path}: {wrong}; embedding the training images anew"), file=sys.stderr)
    return None


def gallery_of(
    model: AlexNetClassifier, datamodule: CIFAR10DataModule, checkpoint: Checkpoint, width: int, k: int
) -> tuple[Gallery, bool]:
    """The training images with their fc7 of ``width``, from the cache if it has them, and whether it had.

    Fewer than ``k`` are refused, before they are embedded.

    Raises:
        ValueError: If there are no data.
    """
    key = f"{checkpoint.digest} {gallery_digest(datamodule, model.device.type)}"
    path = cache_folder(checkpoint.path) / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.pt"
    kept = read_cache(path, key, width)
    places = datamodule.split.train if kept is None else kept.places
    if k > len(places):
        refuse(f"--k: {k}, expected at most {len(places)}, the images of {checkpoint.path}. Choose fewer.")
    if kept is not None:
        return kept, True
    images, targets = (values[places] for values in datamodule.images_in("train"))
    gallery = Gallery(embed(model, datamodule, images, "embedding the training images"), places, images, targets)
    try:
        if path.parent.is_symlink():  # to a folder of other files, maybe
            raise OSError(0, "its folder is a link")
        write_checkpoint({"key": key, **gallery._asdict()}, path)
    except OSError as error:
        why = reason(error.__cause__ or error)
        print(printable(f"{path}: can't be written ({why}); the next time takes as long"), file=sys.stderr)
    return gallery, False
