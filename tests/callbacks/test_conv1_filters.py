from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks import Conv1Filters
from callbacks.conv1_filters import conv1_of
from callbacks.pure.filter_grid import filter_grid


class Tiny(LightningModule):
    """Two convolutions, dropout (whose masks betray a random number drawn elsewhere) and a frozen part."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.conv1 = nn.Conv2d(3, 8, 5)
        self.net.conv2 = nn.Conv2d(8, 4, 3, groups=groups)
        self.net.frozen = nn.Dropout(0.5)
        self.losses: list[Tensor] = []
        self.modes: list[tuple[bool, bool]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.modes.append((self.net.conv1.training, self.net.frozen.training))
        x = nn.functional.dropout(self.net.conv1(batch[0]).relu(), training=self.training)
        loss = self.net.frozen(self.net.conv2(x)).square().mean()
        self.losses.append(loss.detach())
        return loss

    def on_train_start(self) -> None:
        self.net.frozen.eval()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        images = torch.randn(12, 3, 9, 9, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images), batch_size=4, shuffle=True)


def run(
    folder: Path, *callbacks: Conv1Filters, logger: Any = None, epochs: int = 3, **options: Any
) -> tuple[Tiny, Trainer]:
    """Train for some epochs of three steps; TensorBoard logs into ``folder`` unless told otherwise."""
    torch.manual_seed(1)
    model, ckpt_path = Tiny(options.pop("groups", 2)), options.pop("ckpt_path", None)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=str(folder),
        logger=TensorBoardLogger(str(folder), name="", version="") if logger is None else logger,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(model, ckpt_path=ckpt_path)
    return model, trainer


def logged(folder: Path, tag: str = "filters/conv1") -> dict[int, np.ndarray]:
    """Step -> image, out of the event file."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    if tag not in events.Tags()["images"]:
        return {}
    return {e.step: np.array(Image.open(io.BytesIO(e.encoded_image_string))) for e in events.Images(tag)}


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("conv1_filters/*"))


def files(*epochs: int) -> list[str]:
    return [f"epoch_{epoch:03d}.png" for epoch in epochs]


@pytest.mark.parametrize(
    ("every", "epochs", "drawn"),
    [(1, 3, [0, 1, 2, 3]), (2, 3, [0, 2, 3]), (2, 4, [0, 2, 4]), (0, 3, [0, 3]), (5, 3, [0, 3])],
)
def test_draws_at_the_start_every_n_epochs_and_at_the_end_once(
    tmp_path: Path, every: int, epochs: int, drawn: list[int]
):
    run(tmp_path, Conv1Filters(every), epochs=epochs)
    assert saved(tmp_path) == files(*drawn)
    images = logged(tmp_path)
    assert sorted(images) == [3 * epoch for epoch in drawn]
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    assert len(events.Images("filters/conv1")) == len(drawn)
    for epoch in drawn:
        png = np.array(Image.open(tmp_path / "conv1_filters" / f"epoch_{epoch:03d}.png"))
        np.testing.assert_array_equal(png, images[3 * epoch])


def test_the_first_image_is_of_the_initial_weights_and_the_last_of_the_final_ones(tmp_path: Path):
    model, _ = run(tmp_path, Conv1Filters(0, scale=0.2))
    torch.manual_seed(1)
    initial = Tiny().net.conv1.weight
    assert not torch.equal(initial, model.net.conv1.weight)
    for epoch, weights, title in (
        (0, initial, "conv1 before training"),
        (3, model.net.conv1.weight, "conv1 after epoch 3 (step 9)"),
    ):
        want = filter_grid(weights.detach(), 2, 0.2, title).permute(1, 2, 0).numpy()
        png = np.array(Image.open(tmp_path / "conv1_filters" / f"epoch_{epoch:03d}.png"))
        np.testing.assert_array_equal(png, want)


def test_training_is_the_same_with_and_without(tmp_path: Path):
    without, _ = run(tmp_path / "without")
    with_, _ = run(tmp_path / "with", Conv1Filters(1))
    assert len(with_.losses) == 9
    assert torch.equal(torch.stack(with_.losses), torch.stack(without.losses))
    assert all(torch.equal(a, b) for a, b in zip(with_.parameters(), without.parameters(), strict=True))
    assert with_.modes == [(True, False)] * 9
    assert saved(tmp_path / "with")
    assert not saved(tmp_path / "without")


def test_groups_reach_the_picture(tmp_path: Path):
    for groups in (1, 2):
        run(tmp_path / str(groups), Conv1Filters(0), epochs=1, groups=groups)
    heights = [Image.open(tmp_path / f"{groups}/conv1_filters/epoch_000.png").height for groups in (1, 2)]
    assert heights[1] > heights[0]


def test_no_logger_csv_logger_and_several_loggers(tmp_path: Path):
    run(tmp_path / "none", Conv1Filters(0), logger=False, epochs=1)
    assert saved(tmp_path / "none") == files(0, 1)

    _, trainer = run(tmp_path / "csv", Conv1Filters(0), logger=CSVLogger(str(tmp_path / "csv"), name="run"), epochs=1)
    assert trainer.log_dir == str(tmp_path / "csv/run/version_0")
    assert saved(tmp_path / "csv/run/version_0") == files(0, 1)

    folders = [tmp_path / "a", tmp_path / "b"]
    loggers = [TensorBoardLogger(str(folder), name="", version="") for folder in folders]
    run(tmp_path, Conv1Filters(0), logger=[loggers[0], CSVLogger(str(tmp_path / "c")), loggers[1]], epochs=1)
    assert [sorted(logged(folder)) for folder in folders] == [[0, 3], [0, 3]]
    assert [saved(folder) for folder in folders] == [files(0, 1), []]  # the run's folder is the first logger's


def test_switched_off_and_fast_dev_run_write_nothing(tmp_path: Path):
    run(tmp_path / "off", Conv1Filters(1, enabled=False))
    run(tmp_path / "dev", Conv1Filters(1), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.png"))
    assert not logged(tmp_path / "off")


def test_stopped_in_mid_epoch(tmp_path: Path):
    run(tmp_path, Conv1Filters(0), max_steps=4, epochs=9)
    assert sorted(logged(tmp_path)) == [0, 4]


def test_a_resumed_fit_draws_what_it_goes_on_from(tmp_path: Path):
    callback = Conv1Filters(0)
    _, trainer = run(tmp_path / "first", callback, epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    run(tmp_path / "second", callback, epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert saved(tmp_path / "second") == files(1, 2)
    assert sorted(logged(tmp_path / "second")) == [3, 6]


def test_weights_that_are_nan_do_not_stop_training(tmp_path: Path):
    class Diverges(Conv1Filters):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.get_submodule("net.conv1").weight.data.fill_(float("nan"))
            super().on_train_epoch_end(trainer, pl_module)

    with pytest.warns(UserWarning, match="NaN"):
        _, trainer = run(tmp_path, Diverges(1), epochs=2)
    assert trainer.global_step == 6
    assert saved(tmp_path) == files(0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="every_n_epochs must be 0.*got -1"):
        Conv1Filters(-1)
    for scale in (0.0, -1.0, float("nan"), float("inf"), "firts"):
        with pytest.raises(ValueError, match="scale"):
            Conv1Filters(scale=scale)
    model = Tiny()
    model.net.conv1 = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="Linear"):
        conv1_of(model)


def test_one_scale_for_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scales: dict[Any, list[float]] = {}

    class Grows(Conv1Filters):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.get_submodule("net.conv1").weight.data.mul_(2)
            super().on_train_epoch_end(trainer, pl_module)

    for setting in ("first", "each", 0.7):
        found = scales.setdefault(setting, [])

        def listening(weights: Tensor, groups: int, scale: float, title: str, found: list[float] = found) -> Tensor:
            found.append(scale)
            return filter_grid(weights, groups, scale, title)

        monkeypatch.setattr("callbacks.conv1_filters.filter_grid", listening)
        run(tmp_path / str(setting), Grows(scale=setting), epochs=2)
    torch.manual_seed(1)
    initial = np.quantile(Tiny().net.conv1.weight.detach().abs().numpy(), 0.995)
    assert scales["first"] == pytest.approx([initial] * 3, rel=1e-5)
    assert scales["each"][0] == pytest.approx(initial, rel=1e-5)
    assert scales["each"][2] > 2 * scales["each"][0]
    assert scales[0.7] == [0.7] * 3


def test_how_far_filters_moved(tmp_path: Path):
    model, trainer = run(tmp_path, Conv1Filters(), epochs=2)
    torch.manual_seed(1)
    start, end = Tiny().net.conv1.weight.detach().numpy(), model.net.conv1.weight.detach().numpy()
    moved = [np.sqrt(((b - a) ** 2).sum()) / np.sqrt((a**2).sum()) for a, b in zip(start, end, strict=True)]
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    for tag, want in (("filters/moved_mean", np.mean(moved)), ("filters/moved_max", np.max(moved))):
        found = {e.step: e.value for e in events.Scalars(tag)}
        assert sorted(found) == [0, 3, 6]
        assert found[0] == 0
        assert found[6] == pytest.approx(want, rel=1e-5)
    last = events.Histograms("filters/moved")[-1].histogram_value
    assert (last.num, last.max) == (8, pytest.approx(max(moved), rel=1e-5))

    # A resumed run measures from the first run's start, with its scale; a new fit of the same callback does not.
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    callback = Conv1Filters()
    resumed = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path / "resumed"),
    )
    resumed.fit(Tiny(), ckpt_path=tmp_path / "run.ckpt")
    assert callback._start is not None
    np.testing.assert_array_equal(callback._start.numpy(), start)
    run(tmp_path / "again", callback, epochs=1)
    assert saved(tmp_path / "again") == files(0, 1)
    torch.manual_seed(1)
    np.testing.assert_array_equal(callback._start.numpy(), Tiny().net.conv1.weight.detach().numpy())
