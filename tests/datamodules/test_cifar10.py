"""The DataModule: who gets which image, in which order, and what is done to it."""

from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as tv

from datamodules import CIFAR10DataModule
from datamodules.augment import resize_extent
from datamodules.cifar10 import EpochSampler, ImageSet, RawBatch
from datamodules.sources import DataError, find_cifar10


def batches(datamodule: CIFAR10DataModule, loader: str, *args: str) -> list[RawBatch]:
    """As they lie in memory, and as a Trainer moves them to the device."""
    return raw_of(getattr(datamodule, loader)(*args))


def raw_of(loader: DataLoader[RawBatch]) -> list[RawBatch]:
    return [loader.dataset.fetch(places) for places in loader.batch_sampler]


def images_of(raw: list[RawBatch]) -> set[bytes]:
    return {image.numpy().tobytes() for batch in raw for image in batch.images}


def test_splits_are_apart_and_whole(datamodule: CIFAR10DataModule) -> None:
    train, val, test = (images_of(batches(datamodule, f"{name}_dataloader")) for name in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (100, 40, 60)
    assert not train & val
    assert not (train | val) & test
    assert images_of(batches(datamodule, "gallery_dataloader")) == train
    assert images_of(batches(datamodule, "query_dataloader", "val")) == val
    assert images_of(batches(datamodule, "query_dataloader", "test")) == test


def test_a_limited_evaluation_is_a_sample_of_all_classes(datamodule: CIFAR10DataModule) -> None:
    """``limit_val_batches 1`` would choose best.ckpt by airplanes; pictures keep the images that they have shown."""
    datamodule.batch_size = 10
    for stage in ("val", "test"):
        for batch in batches(datamodule, f"{stage}_dataloader"):
            assert batch.targets.tolist() == list(range(10))
        in_order = torch.cat([batch.targets for batch in batches(datamodule, "query_dataloader", stage)])
        assert torch.equal(in_order, in_order.sort().values)


def test_overfit_batches_are_a_sample_of_all_classes(datamodule: CIFAR10DataModule) -> None:
    seen: list[int] = []

    class Probe(LightningModule):
        def training_step(self, batch, batch_idx):
            seen.extend(batch[1].tolist())

        def configure_optimizers(self):
            return None

    datamodule.batch_size = 20
    Trainer(overfit_batches=1, max_epochs=1, logger=False, enable_checkpointing=False).fit(Probe(), datamodule)
    assert torch.bincount(torch.tensor(seen)).tolist() == [2] * 10


def test_gallery_is_in_order_and_not_augmented(datamodule: CIFAR10DataModule) -> None:
    raw = batches(datamodule, "gallery_dataloader")
    assert torch.equal(torch.cat([b.places for b in raw]), torch.arange(100))
    images, targets = datamodule.on_after_batch_transfer(raw[0], 0)
    torch.testing.assert_close(
        datamodule.to_rgb(images), F.interpolate(raw[0].images / 255, (24, 24), mode="bilinear", antialias=True)
    )
    assert torch.equal(targets, raw[0].targets)


def test_order_is_a_function_of_seed_and_epoch(datamodule: CIFAR10DataModule) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        dataset = ImageSet(torch.zeros(50, 1), torch.zeros(50), torch.arange(50), "augmented")
        sampler = EpochSampler(dataset, True, seed, 1, 0)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert sorted(order(0, 3)) == list(range(50))


def test_fetch_takes_any_images_as_a_batch(datamodule: CIFAR10DataModule) -> None:
    loader = datamodule.gallery_dataloader()
    everything = torch.cat([batch.images for batch in raw_of(loader)])
    batch = loader.dataset.fetch([70, 3, 3])
    assert torch.equal(batch.images, everything[[70, 3, 3]])
    assert batch.places.tolist() == [70, 3, 3]
    assert datamodule.on_after_batch_transfer(batch, 0)[0].shape == (3, 3, 24, 24)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_evaluation_sees_every_image_once_over_all_processes(replicas: int) -> None:
    dataset = ImageSet(torch.zeros(64, 1), torch.zeros(64), torch.arange(64), "centre")
    shards = [EpochSampler(dataset, False, 0, replicas, rank) for rank in range(replicas)]
    assert sorted(i for shard in shards for i in shard) == list(range(64))
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]
    training = [EpochSampler(dataset, True, 0, replicas, rank) for rank in range(replicas)]
    assert {i for shard in training for i in shard} == set(range(64))
    assert len({len(list(shard)) for shard in training}) == 1


def test_lightning_leaves_the_samplers_alone(datamodule: CIFAR10DataModule) -> None:
    """It would put its own, which repeats images, in the place of any that is no DistributedSampler."""
    assert isinstance(datamodule.val_dataloader().sampler, torch.utils.data.DistributedSampler)


@pytest.mark.parametrize("input_scale", ["unit", "raw"])
def test_augmentation_is_crop_flip_lighting_scale_resize(small_shapes: None, input_scale: str) -> None:
    datamodule = CIFAR10DataModule(
        source="shapes10", val_size=0, batch_size=20, image_size=48, crop_size=28, input_scale=input_scale
    )
    batch = batches(datamodule, "train_dataloader")[0]
    got, _ = datamodule.on_after_batch_transfer(batch, 0)
    draws = datamodule._epoch_draws(0, torch.device("cpu"))
    mean, std, eigvecs, eigvals = (t.double() for t in datamodule.statistics)
    assert draws.flip.any()
    for i, place in enumerate(batch.places.tolist()):
        image = batch.images[i, :, draws.top[place] :, draws.left[place] :][:, :28, :28]
        image = tv.horizontal_flip(image) if draws.flip[place] else image
        shift = eigvecs @ (draws.alphas[place].double() * eigvals.sqrt())
        lit = image.double() / 255 + shift[:, None, None] - mean[:, None, None]
        scaled = lit / std[:, None, None] if input_scale == "unit" else lit * 255
        expected = F.interpolate(scaled[None], (48, 48), mode="bilinear")[0]
        torch.testing.assert_close(got[i].double(), expected, rtol=1e-4, atol=1e-4 * scaled.abs().max().item())


def test_cutout_comes_before_the_jitter_of_scale_and_both_are_for_training_alone(small_shapes: None) -> None:
    plain, jittered = (
        CIFAR10DataModule(source="shapes10", val_size=0, batch_size=20, image_size=48, crop_size=28, **flags)
        for flags in ({}, {"scale_jitter": 1.5, "cutout": 9})
    )
    batch = batches(plain, "train_dataloader")[0]
    draws = jittered._epoch_draws(0, torch.device("cpu"))
    for table, other in zip(draws[:4], plain._epoch_draws(0, torch.device("cpu"))[:4], strict=True):
        assert torch.equal(table, other)
    plain.image_size = 28  # the crops, lit and normalised, before they are enlarged
    crops, _ = plain.on_after_batch_transfer(batch, 0)
    plain.image_size = 48
    got, _ = jittered.on_after_batch_transfer(batch, 0)
    for image, crop, place in zip(got, crops, batch.places.tolist(), strict=True):
        top, left = (draws.hole[place] - 4).tolist()
        crop[:, max(top, 0) : top + 9, max(left, 0) : left + 9] = 0
        torch.testing.assert_close(image, resize_extent(crop[None], 48, draws.extent[place, None])[0])
    for view in ("centre", "ten_crops"):
        pair = [d.on_after_batch_transfer(batch._replace(view=view), 0)[0] for d in (plain, jittered)]
        assert torch.equal(*pair)


def test_an_image_is_augmented_the_same_in_any_batch(small_shapes: None) -> None:
    seen = []
    for batch_size in (7, 160):
        datamodule = CIFAR10DataModule(
            source="shapes10", val_size=0, batch_size=batch_size, image_size=32, seed=5, scale_jitter=1.2, cutout=8
        )
        rows = torch.empty(160, 3, 32, 32)
        for batch in batches(datamodule, "train_dataloader"):
            rows[batch.places], _ = datamodule.on_after_batch_transfer(batch, 0)
        seen.append(rows)
    assert torch.equal(*seen)


def test_draws_change_with_the_epoch_and_the_seed(datamodule: CIFAR10DataModule) -> None:
    tables = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        datamodule.seed, datamodule._draws = seed, None
        tables.append(datamodule._epoch_draws(epoch, torch.device("cpu")).alphas)
    assert torch.equal(tables[0], tables[3])
    assert not torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_unit_scale_has_mean_0_and_deviation_1_over_the_training_images(small_shapes: None) -> None:
    for scale, deviation in (("unit", 1.0), ("raw", None)):
        datamodule = CIFAR10DataModule(
            source="shapes10", subset_size=100, val_size=0, crop_size=32, image_size=32, input_scale=scale
        )
        inputs = torch.cat([datamodule.on_after_batch_transfer(b, 0)[0] for b in datamodule.gallery_dataloader()])
        flat = inputs.permute(1, 0, 2, 3).flatten(1).double()
        torch.testing.assert_close(flat.mean(1), torch.zeros(3).double(), atol=1e-2, rtol=0)
        expected = torch.full((3,), deviation) if deviation else 255 * datamodule.statistics.std
        torch.testing.assert_close(flat.std(1, correction=0), expected.double(), rtol=1e-4, atol=0)


def test_ten_crops_at_the_test(small_shapes: None) -> None:
    datamodule = CIFAR10DataModule(source="shapes10", val_size=0, image_size=56, test_crops=10)
    batch = batches(datamodule, "test_dataloader")[0]
    views, _ = datamodule.on_after_batch_transfer(batch, 0)
    assert views.shape == (60, 10, 3, 56, 56)
    centre, _ = datamodule.on_after_batch_transfer(batch._replace(view="centre"), 0)
    torch.testing.assert_close(views[:, 4], centre)
    torch.testing.assert_close(views[:, 9], centre.flip(3))
    corner = datamodule._to_input(batch.images[:, :, :28, :28])
    torch.testing.assert_close(views[:, 0], corner)


def test_statistics_travel_with_a_checkpoint(datamodule: CIFAR10DataModule, tmp_path: Path) -> None:
    torch.save(datamodule.state_dict(), tmp_path / "state.pt")
    other = CIFAR10DataModule(source="shapes10", subset_size=50, val_size=0)
    assert not torch.equal(other.statistics.mean, datamodule.statistics.mean)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for theirs, ours in zip(other.statistics, datamodule.statistics, strict=True):
        assert torch.equal(theirs, ours)


def test_with_a_trainer_and_somebody_elses_module(datamodule: CIFAR10DataModule) -> None:
    shapes = []

    class Probe(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 10)

        def training_step(self, batch, batch_idx):
            images, targets = batch
            shapes.append((tuple(images.shape), images.dtype, targets.dtype))
            return F.cross_entropy(self.layer(images.mean((2, 3))), targets)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(Probe(), datamodule)
    assert shapes == [((n, 3, 24, 24), torch.float32, torch.int64) for n in (32, 32, 32, 4)]


class Seen(LightningModule):
    """Keeps the batches that the loops give it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 10)
        self.batches: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch, batch_idx):
        images, targets = batch
        self.batches.append((images, targets))
        return F.cross_entropy(self.layer(images.mean((2, 3))), targets)

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        return batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def quiet(**options: object) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.mark.parametrize("name", ["train", "val", "test", "gallery", "predict"])
def test_a_notebook_gets_batches_that_the_network_takes(datamodule: CIFAR10DataModule, name: str) -> None:
    """Also after a run, whose Trainer the DataModule keeps."""
    for _ in range(2):
        loader = getattr(datamodule, f"{name}_dataloader")()
        images, targets = next(iter(loader))
        assert (images.shape, images.dtype, targets.shape) == ((32, 3, 24, 24), torch.float32, (32,))
        expected = datamodule._inputs_of(batches(datamodule, f"{name}_dataloader")[0], 0)
        assert torch.equal(images, expected[0])
        assert torch.equal(targets, expected[1])
        quiet(max_epochs=1, limit_train_batches=1).fit(Seen(), datamodule)


def test_loaders_alone_train_as_the_datamodule_does(datamodule: CIFAR10DataModule) -> None:
    """The same images, with the epoch's order and augmentation, bit for bit; also with a Trainer that knows it."""
    whole, alone, again = Seen(), Seen(), Seen()
    loaders = {"train_dataloaders": datamodule.train_dataloader(), "val_dataloaders": datamodule.val_dataloader()}
    quiet(max_epochs=2).fit(alone, **loaders)
    trainer = quiet(max_epochs=2)
    trainer.fit(whole, datamodule)
    assert isinstance(next(iter(trainer.train_dataloader)), RawBatch)  # what is moved to the device are bytes
    trainer.fit_loop.epoch_progress.reset()
    trainer.fit(again, train_dataloaders=datamodule.train_dataloader(), val_dataloaders=datamodule.val_dataloader())
    assert len(whole.batches) == 2 + 2 * (4 + 2)  # two to try validation, then two epochs
    for other in (alone, again):
        for theirs, ours in zip(other.batches, whole.batches, strict=True):
            assert torch.equal(theirs[0], ours[0])
            assert torch.equal(theirs[1], ours[1])


@pytest.mark.parametrize("crops", [1, 10])
def test_predict_takes_the_test_images_in_order(datamodule: CIFAR10DataModule, crops: int) -> None:
    datamodule.test_crops = crops
    predicted = quiet().predict(Seen(), datamodule)
    images, targets = (torch.cat(parts) for parts in zip(*predicted, strict=True))
    assert images.shape == ((60, 3, 24, 24) if crops == 1 else (60, 10, 3, 24, 24))
    assert torch.equal(targets, datamodule.images_in("test")[1])


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
@pytest.mark.parametrize("alone", [False, True])
def test_images_have_the_precision_of_the_network(
    datamodule: CIFAR10DataModule, precision: str, dtype: torch.dtype, alone: bool
) -> None:
    """They are bytes when Lightning converts a batch. Augmented in float32, whatever comes after."""
    plain, model = Seen(), Seen()
    quiet(max_epochs=1).fit(plain, datamodule)
    loaders = {"train_dataloaders": datamodule.train_dataloader(), "val_dataloaders": datamodule.val_dataloader()}
    data = loaders if alone else {"datamodule": datamodule}
    quiet(max_epochs=1, precision=precision).fit(model, **data)
    for theirs, ours in zip(model.batches, plain.batches, strict=True):
        assert torch.equal(theirs[0], ours[0].to(dtype))
        assert theirs[1].dtype == torch.int64


def test_auto_takes_what_there_is_and_says_what(small_shapes: None, tmp_path: Path) -> None:
    datamodule = CIFAR10DataModule(root=str(tmp_path), source="auto", download=False, val_size=0)
    assert "not CIFAR-10" in datamodule.description
    assert datamodule.class_names[0] == "disc"
    with pytest.raises(DataError, match="^root: no CIFAR-10 in"):
        CIFAR10DataModule(root=str(tmp_path), download=False).setup("fit")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0, expected 1 or more"),
        ({"image_size": 0}, "image_size"),
        ({"crop_size": 33}, "crop_size: 33 with crop_padding 0, expected"),
        ({"crop_padding": -1}, "crop_padding: -1"),
        ({"crop_padding": 32}, "crop_padding: 32, expected 0 to 31"),
        ({"lighting_std": -0.1}, "lighting_std"),
        ({"lighting_std": float("nan")}, "lighting_std"),
        ({"scale_jitter": 0.9}, "scale_jitter: 0.9, expected 1 to 2"),
        ({"scale_jitter": 2.1}, "scale_jitter: 2.1, expected 1 to 2"),
        ({"cutout": -1}, "cutout: -1"),
        ({"source": "cifar100"}, "source: 'cifar100', expected cifar10 or shapes10 or auto"),
        ({"input_scale": "byte"}, "input_scale: 'byte', expected unit or raw"),
        ({"test_crops": 5}, "test_crops"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments(argument: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}.*\. \S.*\.$"):
        CIFAR10DataModule(**argument)


@pytest.mark.real_data
def test_real_images(request: pytest.FixtureRequest) -> None:
    root = request.config.rootpath / "data"
    if find_cifar10(root) is None:
        pytest.skip("no CIFAR-10 in data/")
    datamodule = CIFAR10DataModule(root=str(root), subset_size=5000, val_size=1000)
    datamodule.setup("fit")
    _, targets = datamodule.images_in("train")
    assert torch.bincount(targets[datamodule.split.train]).tolist() == [500] * 10
    # Published figures for the whole training split, to the sampling error of a tenth of it.
    torch.testing.assert_close(datamodule.statistics.mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.01, rtol=0)
    torch.testing.assert_close(
        datamodule.statistics.eigvals, torch.tensor([0.174, 0.0125, 0.0027]), atol=0.01, rtol=0.1
    )
