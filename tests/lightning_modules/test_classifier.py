"""The LightningModule: loss and metrics by hand, the paper's update rule in float64, schedules, dropout's numbers."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY
from helpers.small import small_net as small_net
from helpers.small_net import events
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.model_summary import ModelSummary
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, prune

from datamodules import CIFAR10DataModule
from lightning_modules import AlexNetClassifier


def test_accuracies_count_images_not_classes() -> None:
    """40 of class 0, all right, and one of class 1, wrong: 40 of 41, where an average over classes says a half."""
    model = AlexNetClassifier(**TINY)
    logits = torch.zeros(41, 10)
    logits[:, 0] = 5
    logits[:, 2:6] = 1  # class 1 is not among the first five
    targets = torch.tensor([0] * 40 + [1])
    model.val_accuracies.update(logits, targets)
    got = {name: value.item() for name, value in model.val_accuracies.compute().items()}
    assert got == {"val/top1": pytest.approx(40 / 41), "val/top5": pytest.approx(40 / 41)}


def test_top5_by_sorting() -> None:
    model, generator = AlexNetClassifier(**TINY), torch.Generator().manual_seed(0)
    logits, targets = torch.randn(500, 10, generator=generator), torch.randint(0, 10, (500,), generator=generator)
    for part in range(5):
        model.test_accuracies.update(logits[part::5], targets[part::5])
    ranks = [sorted(range(10), key=lambda c: -row[c]).index(t) for row, t in zip(logits.tolist(), targets, strict=True)]
    got = model.test_accuracies.compute()
    assert got["test/top1"].item() == pytest.approx(sum(r < 1 for r in ranks) / 500)
    assert got["test/top5"].item() == pytest.approx(sum(r < 5 for r in ranks) / 500)


def test_several_views_are_averaged_after_the_softmax() -> None:
    model = AlexNetClassifier(**TINY, init="he").eval()
    views = 3 * torch.randn(4, 10, 3, 24, 24)
    with torch.no_grad():
        expected = torch.stack([F.softmax(model(views[:, i]), 1) for i in range(10)]).mean(0)
        torch.testing.assert_close(model.log_probabilities(views).exp(), expected, rtol=1e-4, atol=1e-6)
        single = model.log_probabilities(views[:, 0])
        torch.testing.assert_close(single.exp(), F.softmax(model(views[:, 0]), 1))
        targets = torch.arange(4)
        torch.testing.assert_close(F.nll_loss(single, targets), F.cross_entropy(model(views[:, 0]), targets))


def test_a_constant_lr_follows_the_papers_rule() -> None:
    """v <- 0.9 v - 0.0005 e w - e g, w <- w + v (section 5), in float64 over five steps."""
    model = AlexNetClassifier(lr=0.01, schedule="constant", **TINY)
    model.net = torch.nn.Linear(4, 3).double()  # the rule, not the network, is what is tested
    optimizer = model.configure_optimizers()
    x, target = torch.randn(8, 4, dtype=torch.float64), torch.randint(0, 3, (8,))
    weights = [p.detach().clone() for p in model.net.parameters()]
    velocity = [torch.zeros_like(w) for w in weights]
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model.net(x), target).backward()
        for w, v, p in zip(weights, velocity, model.net.parameters(), strict=True):
            v.copy_(0.9 * v - 0.0005 * 0.01 * w - 0.01 * p.grad)
            w += v
        optimizer.step()
    for w, p in zip(weights, model.net.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-15)


def learning_rates(datamodule: CIFAR10DataModule, epochs: int, **arguments: object) -> list[float]:
    """The lr of each epoch's first step, and the last one's after the run."""
    rates: list[float] = []

    class Recorder(AlexNetClassifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return sum(p.sum() for p in self.parameters()) * 0.0

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.log("val/top1", torch.tensor(0.1))  # never better

    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Recorder(**TINY, **arguments), datamodule)
    return [*rates, trainer.optimizers[0].param_groups[0]["lr"]]


@pytest.fixture
def one_step_an_epoch(small_shapes: None) -> CIFAR10DataModule:
    return CIFAR10DataModule(source="shapes10", subset_size=20, val_size=10, batch_size=20, image_size=24)


def test_plateau_divides_by_ten_three_times_at_most(one_step_an_epoch: CIFAR10DataModule) -> None:
    rates = learning_rates(one_step_an_epoch, 12, lr=0.01, schedule="plateau", patience=1)
    assert rates == pytest.approx([1e-2] * 3 + [1e-3] * 2 + [1e-4] * 2 + [1e-5] * 6)


def test_milestones(one_step_an_epoch: CIFAR10DataModule) -> None:
    rates = learning_rates(one_step_an_epoch, 6, lr=0.1, schedule="milestones", milestones=[2, 4])
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001])
    none, default = (AlexNetClassifier(image_size=36, milestones=chosen).milestones for chosen in ([], None))
    assert (none, default) == ([], [30, 60])


def test_one_cycle_rises_to_lr_and_falls_to_nothing(one_step_an_epoch: CIFAR10DataModule) -> None:
    rates = learning_rates(one_step_an_epoch, 12, lr=0.02, schedule="one_cycle", warmup=0.25)
    assert max(rates) == pytest.approx(0.02)
    assert rates.index(max(rates)) == 2  # a quarter of twelve steps
    assert rates[0] < 0.001
    assert rates[-2] < 1e-5


def test_dropout_depends_on_seed_epoch_and_batch_only(datamodule: CIFAR10DataModule) -> None:
    model = AlexNetClassifier(**TINY, init="he")
    images = torch.randn(8, 3, 24, 24)

    def outputs(seed: int, batch_idx: int, stir: int) -> Tensor:
        torch.manual_seed(stir)  # whatever anybody drew before
        model.seed = seed
        model._trainer = type("T", (), {"current_epoch": 0, "global_rank": 0})()
        model.on_train_batch_start(None, batch_idx)
        with torch.no_grad():
            return model(images)

    assert torch.equal(outputs(0, 3, stir=1), outputs(0, 3, stir=2))
    assert not torch.equal(outputs(0, 3, 1), outputs(0, 4, 1))
    assert not torch.equal(outputs(0, 3, 1), outputs(1, 3, 1))


def test_it_learns_twenty_images_by_heart(datamodule: CIFAR10DataModule) -> None:
    torch.manual_seed(0)
    model = AlexNetClassifier(**TINY, init="he", lr=0.01, schedule="constant", dropout=0.0)
    batch = datamodule.on_after_batch_transfer(next(iter(datamodule.val_dataloader())), 0)
    images, targets = (part[:20] for part in batch)
    optimizer, losses = model.configure_optimizers(), []
    for _ in range(40):
        loss = F.nll_loss(model.log_probabilities(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2
    assert losses[-1] < 0.5


def test_memory_layout_and_compile_change_neither_keys_nor_outputs() -> None:
    torch.manual_seed(0)
    plain = AlexNetClassifier(**TINY, init="he", channels_last=False).eval()
    images = torch.randn(2, 3, 24, 24)
    for variant in ({"channels_last": True}, {"channels_last": False, "compile": True}):
        other = AlexNetClassifier(**TINY, init="he", **variant).eval()
        assert list(other.state_dict()) == list(plain.state_dict())
        other.load_state_dict(plain.state_dict())
        if "compile" not in variant:
            with torch.no_grad():
                torch.testing.assert_close(other(images), plain(images), rtol=1e-4, atol=1e-5)


def test_weights_are_flattened_and_pruned_under_channels_last() -> None:
    model = AlexNetClassifier(**TINY, channels_last=True)
    layouts: list[bool] = []
    model.net.conv2.register_forward_hook(
        lambda _module, _args, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    model(torch.randn(2, 3, 24, 24))
    assert layouts == [True]
    assert len(parameters_to_vector(model.parameters())) == sum(p.numel() for p in model.parameters())
    prune.l1_unstructured(model.net.conv2, "weight", 0.5)
    assert (model.net.conv2.weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_momentum_of_another_layout_goes_on_as_it_was() -> None:
    """Fused SGD reads weights and momentum as they lie: channels_last beside contiguous would mix up the momentum."""
    model = AlexNetClassifier(**TINY, init="he", schedule="constant")
    optimizer = model.configure_optimizers()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    weights = copy.deepcopy(model.state_dict())
    after = []
    for layout in (torch.contiguous_format, torch.channels_last):
        saved = copy.deepcopy(optimizer.state_dict())
        for state in saved["state"].values():
            if state["momentum_buffer"].dim() == 4:
                state["momentum_buffer"] = state["momentum_buffer"].contiguous(memory_format=layout)
        checkpoint = {"state_dict": copy.deepcopy(weights), "optimizer_states": [saved]}
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        other = model.configure_optimizers()
        other.load_state_dict(checkpoint["optimizer_states"][0])
        other.step()
        after.append(parameters_to_vector(model.parameters()).detach().clone())
    assert torch.equal(*after)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"lr": 0.0}, "lr: 0.0, expected a finite number above 0"),
        ({"lr": float("nan")}, "lr: nan"),
        ({"lr": float("inf")}, "lr: inf"),
        ({"momentum": 1.0}, "momentum: 1.0, expected"),
        ({"weight_decay": -1.0}, "weight_decay: -1.0, expected"),
        ({"patience": -1}, "patience: -1, expected"),
        ({"milestones": [3, 0]}, r"milestones: \[3, 0\], expected"),
        ({"schedule": "cosine"}, "schedule: 'cosine', expected plateau or"),
        ({"warmup": 1.0}, "warmup: 1.0, expected"),
        ({"image_size": 16}, "image_size: 16, expected 36 pixels or more"),
    ],
)
def test_bad_arguments(argument: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}.*\. \S.*\.$"):
        AlexNetClassifier(**argument)


def test_the_summary_shows_sizes_and_flops() -> None:
    summary = ModelSummary(AlexNetClassifier(**TINY), max_depth=2)
    sizes = dict(zip(summary.layer_names, summary.out_sizes, strict=True))
    assert sizes["net"] == [1, 10]
    assert sizes["net.conv1"] == [1, 96, 8, 8]
    assert sizes["net.fc7"] == [1, 4096]
    multiplications = {"net.conv1": 8 * 8 * 96 * 3 * 11 * 11, "net.fc7": 4096 * 4096}
    for name, flops in multiplications.items():
        assert sum(summary.flop_counts[name].values()) == 2 * flops


def test_a_compiled_network_is_not_run_for_the_summary() -> None:
    assert AlexNetClassifier(**TINY, compile=True).example_input_array is None


@pytest.fixture
def fitted(
    one_step_an_epoch: CIFAR10DataModule, small_net: None, tmp_path: Path
) -> Callable[..., tuple[AlexNetClassifier, Trainer]]:
    def fit(model: dict[str, Any] | None = None, **trainer: Any) -> tuple[AlexNetClassifier, Trainer]:
        torch.manual_seed(0)
        classifier = AlexNetClassifier(image_size=24, schedule="constant", **(model or {}))
        options = {"logger": False, "enable_model_summary": False, "max_epochs": 2} | trainer
        run = Trainer(accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, **options)
        run.fit(classifier, one_step_an_epoch)
        return classifier, run

    return fit


@pytest.mark.filterwarnings("ignore")  # tracing warns of every shape that is checked, and of being deprecated
def test_summary_and_graph_change_nothing_in_training(fitted: Callable[..., Any], tmp_path: Path) -> None:
    plain, _ = fitted()
    logger = TensorBoardLogger(str(tmp_path), name="", version="", log_graph=True)
    shown, _ = fitted(enable_model_summary=True, logger=logger)
    assert torch.equal(parameters_to_vector(shown.parameters()), parameters_to_vector(plain.parameters()))
    assert any("conv2" in node.name for node in events(tmp_path).Graph().node)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "16-true", "bf16-mixed"])
def test_any_precision_counts_and_averages_in_float32_or_better(fitted: Callable[..., Any], precision: str) -> None:
    model, trainer = fitted(precision=precision)
    steps = [model.log_probabilities(torch.zeros(shape)).dtype for shape in ((2, 3, 24, 24), (2, 10, 3, 24, 24))]
    assert steps == [torch.float64 if precision == "64-true" else torch.float32] * 2
    figures = {name: trainer.callback_metrics[name] for name in ("train/loss", "val/loss", "train/top1", "val/top1")}
    assert {name: figure.dtype.itemsize >= 4 for name, figure in figures.items()} == dict.fromkeys(figures, True)
    assert all(figures[name] == pytest.approx(2.3, abs=0.5) for name in ("train/loss", "val/loss"))


def test_the_mean_loss_of_bf16_true_counts_beyond_256_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model = AlexNetClassifier(**TINY).to(torch.bfloat16)
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)
    logits = torch.tensor([[3.0] + [0.0] * 9, [0.0] * 10] * 200)
    monkeypatch.setattr(model, "forward", lambda images: logits[: len(images)].bfloat16())
    targets = torch.zeros(400, dtype=torch.long)
    for _ in range(3):
        model.model_step((torch.zeros(400, 3, 24, 24), targets), "val")
    assert model.val_loss.compute() == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)


def test_the_mean_loss_is_that_of_images_and_leaves_none_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images of class 0, then one: softmax gives it e^z / (e^z + 9)."""
    model = AlexNetClassifier(**TINY)
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)

    def see(images: int, z: float) -> None:
        logits = torch.tensor([[z] + [0.0] * 9] * images)
        monkeypatch.setattr(model, "forward", lambda _: logits)
        model.model_step((torch.zeros(images, 3, 24, 24), torch.zeros(images, dtype=torch.long)), "val")

    see(3, 1.0)
    see(1, 5.0)
    losses = [math.log(math.exp(z) + 9) - z for z in (1.0, 1.0, 1.0, 5.0)]
    assert float(model.val_loss.compute()) == pytest.approx(sum(losses) / 4, rel=1e-6)
    see(1, math.nan)
    assert math.isnan(model.val_loss.compute())


@pytest.mark.parametrize("crops", [1, 10])
def test_predict_gives_the_test_images_probabilities_in_order(datamodule: CIFAR10DataModule, crops: int) -> None:
    """Of ten crops the mean of the softmax (section 4.1), as the test itself has it."""
    datamodule.test_crops = crops
    model = AlexNetClassifier(**TINY)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    found = torch.cat([torch.as_tensor(part) for part in trainer.predict(model, datamodule) or []])
    views = torch.cat([images for images, _ in datamodule.predict_dataloader()]).view(60, crops, 3, 24, 24)
    with torch.no_grad():
        expected = torch.stack([model.net.eval()(views[:, i]).softmax(1) for i in range(crops)]).mean(0)
    torch.testing.assert_close(found, expected)
    targets = datamodule.images_in("test")[1]
    (metrics,) = trainer.test(model, datamodule, verbose=False)
    assert metrics["test/top1"] == pytest.approx((found.argmax(1) == targets).float().mean().item())


def test_the_papers_schedule_without_validation(datamodule: CIFAR10DataModule) -> None:
    """As a notebook has it: there is nothing to look at, so the rate stays."""
    datamodule.setup("fit")
    model = AlexNetClassifier(**TINY)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=2
    )
    trainer.fit(model, train_dataloaders=datamodule.train_dataloader())
    assert trainer.current_epoch == 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == model.lr
