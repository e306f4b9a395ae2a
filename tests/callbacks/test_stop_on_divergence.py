"""A loss or a gradient that is no number stops the run before the weights, in one line, with exit status 3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers import error_line
from helpers.small import UNSEEN
from helpers.small import small_net as small_net
from torch import Tensor

from callbacks.checkpoints.files import NotFiniteError
from callbacks.stop_on_divergence import StopOnDivergence, what_is_not_finite
from lightning_modules import AlexNetClassifier

Fit = Callable[..., int]
CHECKPOINTS = Path("logs/alexnet-shapes10/version_0/checkpoints")


def test_finds_what_is_not_finite() -> None:
    ones, bad = torch.ones(3), torch.tensor([1.0, float("nan")])
    assert what_is_not_finite(torch.tensor(2.3), [ones, ones]) is None
    assert what_is_not_finite(None, []) is None
    assert what_is_not_finite(torch.tensor(float("inf")), [ones]) == "loss is inf"
    assert what_is_not_finite(torch.tensor(2.3), [ones, bad]) == "gradient norm is nan"
    assert what_is_not_finite(None, [-bad[:1] / 0]) == "gradient norm is inf"


def test_a_loss_of_another_process_stops_them_all() -> None:
    """With a scaler infinite gradients are usual, so that the loss alone is looked at, which DDP shares with nobody."""
    shared: list[str] = []

    def reduce(loss: Tensor, reduce_op: str) -> Tensor:
        shared.append(reduce_op)
        return loss + float("nan")  # the mean with another process's

    trainer: Any = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=object()), world_size=2, strategy=SimpleNamespace(reduce=reduce)
    )
    callback, loss, nothing = StopOnDivergence(), torch.ones(()), cast(Any, None)
    callback.on_before_backward(trainer, nothing, loss)
    with pytest.raises(NotFiniteError, match="loss is nan"):
        callback.on_before_optimizer_step(trainer, nothing, torch.optim.SGD([torch.zeros(1)], lr=1.0))
    assert shared == ["mean"]
    assert loss == 1


def every_file_is_finite() -> int:
    files = list(Path("logs").rglob("*.ckpt"))
    for file in files:
        checkpoint = torch.load(file, weights_only=True)
        tensors = list(checkpoint["state_dict"].values())
        for optimizer in checkpoint.get("optimizer_states", []):
            tensors += [value for state in optimizer["state"].values() for value in state.values()]
        assert all(tensor is None or bool(torch.as_tensor(tensor).isfinite().all()) for tensor in tensors)
    return len(files)


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize(("step", "where"), [(1, "loss"), (3, "gradient"), (5, "loss"), (8, "gradient")])
def test_nan_at_a_step(
    fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, step: int, where: str
) -> None:
    original = AlexNetClassifier.training_step
    stepped: list[int] = []

    def training_step(self: AlexNetClassifier, batch: Any, batch_idx: int) -> Any:
        output = original(self, batch, batch_idx)
        stepped.append(self.trainer.global_step)
        if self.trainer.global_step + 1 == step:
            if where == "loss":
                return output * float("nan")
            self.net.conv1.weight.register_hook(lambda gradient: gradient / 0)
        return output

    monkeypatch.setattr(AlexNetClassifier, "training_step", training_step)
    assert fit(*UNSEEN) == 3
    line = error_line(capsys.readouterr().err)
    good = CHECKPOINTS / "last.ckpt" if step > 4 else "none yet"
    assert f"and was kept from the weights, after step {step - 1} (epoch {(step - 1) // 4}), lr " in line
    assert ("loss is nan" if where == "loss" else "gradient norm is ") in line
    assert f"Last good checkpoint: {good}" in line.replace(f"{Path().absolute()}/", "")
    assert stepped == list(range(step))
    assert every_file_is_finite() == (2 if step > 4 else 0)  # last and best


@pytest.mark.usefixtures("small_net")
def test_a_last_step_that_overflows_is_not_saved(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """Its gradients are finite, but not the weights after it: the checkpoint that was to hold them is not written."""
    words = ["--model.schedule=constant", "--model.lr=1e300", "--trainer.limit_train_batches=1"]
    assert fit(*UNSEEN, *words) == 3
    line = error_line(capsys.readouterr().err)
    assert "lr: net." in line
    assert " is NaN or infinite, after step 1 (epoch " in line
    assert every_file_is_finite() == 0
