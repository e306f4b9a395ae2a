from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.small_net import SmallNet, run, scalars, trainer_for
from lightning import Callback

from callbacks import TrainingHealth, training_health
from callbacks.training_health import gradient_norm, process_memory
from datamodules import CIFAR10DataModule


def test_gradient_norm() -> None:
    layer = torch.nn.Linear(2, 2)
    assert gradient_norm(layer) == 0.0
    layer.weight.grad = torch.tensor([[1.0, 2.0], [0.0, 2.0]])
    layer.bias.grad = torch.tensor([0.0, -4.0])
    assert gradient_norm(layer) == pytest.approx(5.0)


def test_process_memory_sees_a_large_tensor() -> None:
    before = process_memory()
    if before is None:
        pytest.skip("this system doesn't tell")
    large = torch.ones(2**26)  # a quarter of a GiB
    after = process_memory()
    assert after is not None
    assert 0.2 < after - before < 0.5
    assert large.sum() == 2**26


def test_lr_and_gradient_norm_are_the_steps_own(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    class Decaying(SmallNet):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    class Norms(Callback):
        def __init__(self) -> None:
            self.found: list[float] = []

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            self.found.append(sum(float(p.grad.double().square().sum()) for p in pl_module.parameters()) ** 0.5)

    norms = Norms()
    trainer = trainer_for(tmp_path, TrainingHealth(), norms, log_every_n_steps=3, gradient_clip_val=1e-3)
    trainer.fit(Decaying(), datamodule)
    # Logged at Lightning's own steps: each third one, counted from 0.
    assert scalars(tmp_path, "train/lr") == {2: 0.25, 5: 2.0**-5}
    logged = scalars(tmp_path, "health/gradient_norm")
    assert logged == pytest.approx({2: norms.found[2], 5: norms.found[5]}, rel=1e-5)  # before clipping
    assert min(logged.values()) > 1e-3


def test_a_fused_optimiser_with_a_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients are still multiplied by the scale when callbacks see them (lightning's amp.py)."""
    written: list[dict[str, float]] = []
    monkeypatch.setattr(training_health, "write_scalars", lambda trainer, values: written.append(values))
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad = torch.tensor([[3.0, 4.0]]) * 1024
    scaler = SimpleNamespace(get_scale=lambda: 1024.0)
    trainer: Any = SimpleNamespace(
        log_every_n_steps=1, global_step=0, precision_plugin=SimpleNamespace(scaler=scaler), fast_dev_run=False
    )
    for fused in (True, False):
        optimizer: Any = torch.optim.SGD(layer.parameters(), lr=0.5)
        optimizer._step_supports_amp_scaling = fused
        TrainingHealth().on_before_optimizer_step(trainer, layer, optimizer)  # type: ignore[arg-type]
    assert [values["health/gradient_norm"] for values in written] == pytest.approx([5.0, 5.0 * 1024])


def test_speed_is_trainings_without_validation(
    tmp_path: Path, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    class Slow(SmallNet):
        """A training step takes two seconds, a validation step ten."""

        def log_probabilities(self, images: torch.Tensor) -> torch.Tensor:
            nonlocal now
            now += 2 if self.training else 10
            return super().log_probabilities(images)

    monkeypatch.setattr(training_health, "perf_counter", lambda: now)
    for folder, options in (("end", {}), ("middle", {"val_check_interval": 2})):
        trainer_for(tmp_path / folder, TrainingHealth(), **options).fit(Slow(), datamodule)
        assert scalars(tmp_path / folder, "health/images_per_second") == pytest.approx({4: 100 / 8, 8: 100 / 8})
        validations = 2 if options else 1
        seconds = 8 + validations * 2 * 10  # two batches each
        assert scalars(tmp_path / folder, "health/epoch_seconds") == pytest.approx({4: seconds, 8: seconds})


def test_memory_is_this_processs(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    run(tmp_path, datamodule, TrainingHealth(), epochs=1)
    assert scalars(tmp_path, "health/memory_gib")[4] == pytest.approx(process_memory(), abs=0.1)
