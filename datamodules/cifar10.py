"""CIFAR10DataModule: which images, split how, augmented how, in batches.

Images stay in memory as one uint8 tensor. A batch is one gather, and all that happens to it happens to the whole
batch on the device it was moved to: crop, flip, lighting (section 4.1), normalisation, resizing; where asked for,
cutout before the resizing and a jitter of scale with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_convert

from datamodules import shapes10, sources
from datamodules.augment import Draws, centre_crop, crop_and_flip, cut_out, draw, resize, resize_extent, ten_crops
from datamodules.pca_lighting import RGBStatistics, fit_rgb_pca, pca_lighting
from datamodules.photos import Photos, read_photos
from datamodules.preprocessing import SIZE, InputScale, normalise
from datamodules.subset import Split, alternating, balanced_split

log = logging.getLogger(__name__)

View = Literal["augmented", "centre", "ten_crops"]
TestCrops = Literal[1, 10]

# What arguments may be: from the least to the most, or one of these.
RANGES: dict[str, tuple[float, float]] = {
    "batch_size": (1, inf),
    "image_size": (1, inf),
    "crop_padding": (0, SIZE - 1),
    "lighting_std": (0, inf),
    "scale_jitter": (1, 2),  # there an image may fill a quarter, its mirror images the rest
    "cutout": (0, inf),
    "seed": (0, inf),
    "split_seed": (0, inf),
}
CHOICES = {"source": sources.Source, "input_scale": InputScale, "test_crops": TestCrops}


class RawBatch(NamedTuple):
    """A batch as it lies in memory, and how it wants to be looked at."""

    images: Tensor  # (B, 3, 32, 32) uint8
    targets: Tensor  # (B,) int64
    places: Tensor  # (B,) int64, in the data set: the images' rows in the epoch's table of augmentations
    view: View  # what the DataModule makes of it on the device


class ImageSet(Dataset[RawBatch]):
    """The images at ``indices``, which are not copied, in that order."""

    def __init__(self, images: Tensor, targets: Tensor, indices: Tensor, view: View) -> None:
        self.images, self.targets, self.indices, self.view = images, targets, indices, view

    def __len__(self) -> int:
        """How many images."""
        return len(self.indices)

    def fetch(self, places: list[int]) -> RawBatch:
        """The images at ``places``, from 0 to ``len(self) - 1``, as one batch by one gather."""
        rows = torch.tensor(places)
        return RawBatch(self.images[self.indices[rows]], self.targets[self.indices[rows]], rows, self.view)

    __getitems__ = fetch  # what a DataLoader calls, instead of one __getitem__ an image


class EpochSampler(DistributedSampler[RawBatch]):
    """Which images this process takes, in which order: a function of (seed, epoch), so a resumed run can repeat it.

    In training every process gets as many images (DistributedSampler repeats a few at the end to even them out), in an
    order of ``seed + epoch``: that of the next seed's epoch before, though with other augmentations and dropout. In
    evaluation each image comes exactly once over all processes, so that the metrics are those of one process.
    """

    def __init__(self, dataset: ImageSet, shuffle: bool, seed: int, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.share = range(rank, len(dataset), num_replicas)  # what evaluation goes through
        if not shuffle:
            self.num_samples = len(self.share)  # the sampler's length

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        """Places in the data set."""
        return iter(super().__iter__() if self.shuffle else self.share)  # type: ignore[arg-type]


class CIFAR10DataModule(LightningDataModule):
    """CIFAR-10, or its stand-in shapes10, ready for the network.

    A loader that is asked for while no Trainer runs gives batches as the network takes them, made on the CPU: float
    images ``(B, 3, image_size, image_size)`` and int64 targets ``(B,)``. A Trainer's own are made on its device.

    Args:
        root: Folder that is searched for CIFAR-10, and into which it is downloaded: ``cifar-10-batches-py/``,
            ``cifar-10-python.tar.gz``, ``cifar-10-batches-bin/`` or class folders ``train/<class>/*.png``, a class by
            its name or number; also one level down in ``cifar10/``.
        source: ``cifar10``; ``shapes10``, ten classes of shapes that the project draws itself; or ``auto``, CIFAR-10
            where it is found or can be downloaded, else shapes10.
        download: Fetch CIFAR-10 where it is not found.
        subset_size: Images to train on, the same number from each class; ``null`` takes all but the validation's.
        val_size: Images cut from the training split for validation, the same number from each class.
        split_seed: Chooses the images of both. Apart from ``seed``, so that runs of several seeds see the same images.
        batch_size: Images a step and process.
        image_size: Height and width in pixels that the network takes.
        crop_size: Height and width in pixels of the square that is cut from the 32x32 image before it is resized.
            28 of 32 is the paper's 224 of 256; 32 with ``crop_padding`` 4 shifts the whole image, as is usual here.
        crop_padding: Pixels by which images are padded, by reflection, before the crop. 0 and ``crop_size`` 32: none.
        flip: Mirror half of the training images.
        lighting_std: Standard deviation of the PCA lighting's draws, 0.1 in section 4.1; 0 switches it off.
        scale_jitter: Largest factor by which training images grow or shrink, in width and in height apart, beyond the
            enlargement to ``image_size``; 1 to 2, 1 switches it off. Not the paper's.
        cutout: Height and width in pixels of a grey square in training crops; 0 switches it off. Not the paper's.
        input_scale: ``unit`` divides by the training set's standard deviation per channel after its mean is subtracted.
            ``raw`` is the paper's "(centered) raw RGB values", 0 to 255 less the mean (section 2): 60 times as large.
        test_crops: 1 tests the centre crop; 10 the ten crops of section 4.1.
        seed: Of the order and the augmentation: both are functions of (seed, epoch, image).
        predict_folder: Folder of pictures of any size that ``predict`` goes through; ``null`` takes the test split. No
            hyperparameter: a checkpoint does not keep it.

    Raises:
        ValueError: If an argument is out of its range.
        DataError: If there are no data, or they are damaged (on ``prepare_data`` and ``setup``).

    Source:
        Krizhevsky et al. 2012, sections 2 and 4.1.
    """

    def __init__(
        self,
        root: str = "data",
        source: sources.Source = "cifar10",
        download: bool = True,
        subset_size: int | None = None,
        val_size: int = 5000,
        split_seed: int = 0,
        batch_size: int = 128,
        image_size: int = 224,
        crop_size: int = 28,
        crop_padding: int = 0,
        flip: bool = True,
        lighting_std: float = 0.1,
        scale_jitter: float = 1.0,
        cutout: int = 0,
        input_scale: InputScale = "unit",
        test_crops: TestCrops = 1,
        seed: int = 0,
        predict_folder: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="predict_folder")
        _check(self.hparams)
        self.root, self.source, self.download = root, source, download
        self.subset_size, self.val_size, self.split_seed = subset_size, val_size, split_seed
        self.batch_size, self.image_size, self.seed = batch_size, image_size, seed
        self.crop_size, self.crop_padding, self.flip, self.lighting_std = crop_size, crop_padding, flip, lighting_std
        self.scale_jitter, self.cutout = scale_jitter, cutout
        self.input_scale, self.test_crops, self.predict_folder = input_scale, test_crops, predict_folder
        self._images: dict[str, tuple[Tensor, Tensor]] = {}
        self._draws: tuple[int, torch.device, Draws] | None = None
        # A folder may hold fewer pictures than there are processes, some of which then have nothing to do.
        self.allow_zero_length_dataloader_with_multiple_devices = predict_folder is not None

    @cached_property
    def layout(self) -> sources.Layout | None:
        """Where CIFAR-10 lies, which may have to be downloaded first; None for shapes10."""
        return sources.resolve_source(self.root, self.source, self.download)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Ten names, in the order of the labels; known without the data, where it is said which."""
        stand_in = self.source == "shapes10" or (self.source == "auto" and self.layout is None)
        return shapes10.CLASSES if stand_in else sources.CLASSES

    @property
    def description(self) -> str:
        """What the images are, for people: which data set, and whether lossless or a JPEG copy."""
        return self.layout.description if self.layout else "shapes10 (drawn by this project; not CIFAR-10)"

    def images_in(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """All of a split: images ``(N, 3, 32, 32)`` uint8 and targets ``(N,)`` int64. Read or drawn once."""
        if split not in self._images:
            layout = self.layout
            self._images[split] = sources.load_cifar10(layout, split) if layout else shapes10.draw_shapes10(split)
        return self._images[split]

    @cached_property
    def photos(self) -> Photos:
        """The pictures of ``predict_folder``, in the order of their names."""
        try:
            photos = read_photos([Path(self.predict_folder or "")])
        except (ValueError, OSError) as error:
            raise ValueError(f"predict_folder: {str(error).removeprefix('photo: ')}") from None
        for line in photos.skipped:
            log.warning("%s", line)
        return photos

    @cached_property
    def split(self) -> Split:
        """Places of the training and validation images in the training split."""
        return balanced_split(self.images_in("train")[1], self.subset_size, self.val_size, self.split_seed)

    @cached_property
    def statistics(self) -> RGBStatistics:
        """Mean, spread and principal axes of the training images in use, or those that a checkpoint brought along."""
        return fit_rgb_pca(self.images_in("train")[0], self.split.train)

    def prepare_data(self) -> None:
        """Find CIFAR-10 or download it, in one process a machine; the user's own pictures need none."""
        if not self.predict_folder:
            self.layout  # noqa: B018

    def setup(self, stage: str) -> None:
        """Read what the stage needs, so that whatever is wrong with it shows before anything else is done."""
        if stage == "predict" and self.predict_folder:
            self.photos  # noqa: B018
        elif stage in ("test", "predict"):
            self.images_in("test")
        elif stage in ("fit", "validate"):
            self.split, self.statistics  # noqa: B018

    def state_dict(self) -> dict[str, Any]:
        """The statistics belong to the trained network: a checkpoint must not be tested with another subset's.

        With the class names, and what the hyperparameters say, a checkpoint has all that an image needs.
        """
        statistics = {key: value.clone() for key, value in self.statistics._asdict().items()}
        return {**statistics, "class_names": list(self.class_names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise a ValueError if these are no statistics: a checkpoint may come from anywhere."""
        names = state_dict.get("class_names", [])  # an earlier version's has none
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("class_names: no names, expected a list of them. Use another checkpoint.")
        if missing := {*RGBStatistics._fields} ^ (state_dict.keys() - {"class_names"}):
            wanted = ", ".join(RGBStatistics._fields)
            raise ValueError(f"{min(missing)}: missing or unknown, expected {wanted}. Use another checkpoint.")
        found = RGBStatistics(**{key: value for key, value in state_dict.items() if key != "class_names"})
        for name, value in found._asdict().items():
            shape = (3, 3) if name == "eigvecs" else (3,)
            plain = isinstance(value, Tensor) and value.shape == shape and value.is_floating_point()
            if not plain or not value.isfinite().all() or (name in ("std", "eigvals") and value.min() < 0):
                raise ValueError(f"{name}: no statistics of RGB values, expected {shape}. Use another checkpoint.")
        self.statistics = found

    def train_dataloader(self) -> DataLoader[RawBatch]:
        """Augmented, in a new order every epoch."""
        overfit = self.trainer and self.trainer.overfit_batches  # type: ignore[attr-defined]
        # Lightning overfits to the first images in order, which would be those of one class.
        return self._loader("train", "augmented", alternate=bool(overfit))

    def val_dataloader(self) -> DataLoader[RawBatch] | list[Any]:
        """Classes alternate, so that ``limit_val_batches`` leaves a sample."""
        return self._loader("val", "centre", alternate=True) if len(self.split.val) else []

    def test_dataloader(self) -> DataLoader[RawBatch]:
        """The test split, likewise, one crop or ten an image. ``test`` alone uses it."""
        return self._loader("test", self._test_view, alternate=True)

    def gallery_dataloader(self) -> DataLoader[RawBatch]:
        """The training images, in order and as they are, all of them in every process."""
        return self._loader("train", "centre", shard=False)

    def query_dataloader(self, stage: Literal["val", "test"]) -> DataLoader[RawBatch]:
        """The validation or test images, likewise."""
        return self._loader(stage, "centre", shard=False)

    def predict_dataloader(self) -> DataLoader[RawBatch]:
        """``predict_folder``'s pictures, labelled 0, or the test split: in order, so that a prediction's place is its
        image's."""
        return self._loader("predict" if self.predict_folder else "test", self._test_view)

    @property
    def _test_view(self) -> View:
        return "ten_crops" if self.test_crops == 10 else "centre"

    def _loader(
        self, stage: Literal["train", "val", "test", "predict"], view: View, shard: bool = True, alternate: bool = False
    ) -> DataLoader[RawBatch]:
        if stage == "predict":
            images = self.photos.images
            targets = torch.zeros(len(images), dtype=torch.int64)
        else:
            images, targets = self.images_in("test" if stage == "test" else "train")
        indices = getattr(self.split, stage) if stage in ("train", "val") else torch.arange(len(images))
        indices = alternating(targets, indices) if alternate else indices
        dataset = ImageSet(images, targets, indices, view)
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if shard and self.trainer else (1, 0)
        sampler = EpochSampler(dataset, view == "augmented", self.seed, replicas, rank)
        moved = self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING
        # No workers: a batch is one gather of a millisecond, which sending it to another process would only slow down.
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            # The Trainer moves the batch as it is to the device, and on_after_batch_transfer makes the input there.
            collate_fn=default_convert if moved else partial(self._collate, sampler),
            pin_memory=torch.cuda.is_available(),
        )

    def _collate(self, sampler: EpochSampler, batch: RawBatch) -> tuple[Tensor, Tensor]:
        return self._inputs_of(batch, sampler.epoch)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the network's input of a raw batch, in the Trainer's precision: images and targets."""
        if not isinstance(batch, RawBatch):
            return batch  # somebody else's loader, Lightning's second call, or made by the loader
        if self.trainer is None:
            return self._inputs_of(batch, 0)
        # Lightning's own conversion came before, when the images were bytes.
        inputs = self._inputs_of(batch, self.trainer.current_epoch)
        return self.trainer.precision_plugin.convert_input(inputs)

    def _inputs_of(self, batch: RawBatch, epoch: int) -> tuple[Tensor, Tensor]:
        """Float images ``(B, 3, image_size, image_size)``, of ten crops ``(B, 10, ...)``; int64 targets ``(B,)``."""
        if batch.view == "augmented":
            draws = self._epoch_draws(epoch, batch.places.device).rows(batch.places)
            crops = crop_and_flip(batch.images, draws.top, draws.left, draws.flip, self.crop_size, self.crop_padding)
            return self._to_input(crops, draws), batch.targets
        if batch.view == "ten_crops":
            crops = ten_crops(batch.images, self.crop_size, self.crop_padding)
            return self._to_input(crops.flatten(0, 1)).unflatten(0, crops.shape[:2]), batch.targets
        return self._to_input(centre_crop(batch.images, min(self.crop_size, SIZE))), batch.targets

    def _epoch_draws(self, epoch: int, device: torch.device) -> Draws:
        if self._draws is None or self._draws[:2] != (epoch, device):
            n, slack = len(self.split.train), SIZE + 2 * self.crop_padding - self.crop_size
            key = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0]) >> 1
            stream = torch.Generator().manual_seed(key)
            table = draw(n, self.crop_size, slack, self.flip, self.lighting_std, self.scale_jitter, stream)
            self._draws = epoch, device, Draws(*(column.to(device) for column in table))  # once an epoch, not a batch
        return self._draws[2]

    def _to_input(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        """uint8 to the network's input. Resized last: lighting and scale are the same for all pixels of an image, so
        doing them on the small image gives the same for a fraction of the work."""
        mean, std, eigvecs, eigvals = (t.to(images.device) for t in self.statistics)
        x = images.float() / 255
        if draws and self.lighting_std:
            x = pca_lighting(x, eigvecs, eigvals, draws.alphas)
        x = normalise(x, mean, std, self.input_scale)
        if draws and self.cutout:
            x = cut_out(x, draws.hole, self.cutout)
        if draws and self.scale_jitter > 1:
            return resize_extent(x, self.image_size, draws.extent)
        return resize(x, self.image_size)

    def to_rgb(self, images: Tensor) -> Tensor:
        """The network's input ``(B, 3, H, W)`` back to RGB in ``[0, 1]``."""
        mean, std = (t.to(images.device)[:, None, None] for t in self.statistics[:2])
        scale = std.clamp_min(1 / 255) if self.input_scale == "unit" else 1 / 255
        return (images * scale + mean).clamp(0, 1)


def _check(arguments: Mapping[str, Any]) -> None:
    for name, (least, most) in RANGES.items():
        if not least <= arguments[name] <= most:
            expected = f"{least} or more" if most == inf else f"{least} to {most}"
            raise ValueError(f"{name}: {arguments[name]}, expected {expected}. Choose such a number.")
    for name, choices in CHOICES.items():
        if arguments[name] not in get_args(choices):
            expected = " or ".join(map(str, get_args(choices)))
            raise ValueError(f"{name}: {arguments[name]!r}, expected {expected}. Choose one.")
    size, padding = arguments["crop_size"], arguments["crop_padding"]
    if not 1 <= size <= SIZE + 2 * padding:
        raise ValueError(
            f"crop_size: {size} with crop_padding {padding}, expected a square that fits into a {SIZE}x{SIZE} image "
            f"and its padding. Choose 1 to {SIZE + 2 * padding} pixels."
        )
