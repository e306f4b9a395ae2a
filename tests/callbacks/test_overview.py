from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.small import SmallAlexNet
from helpers.small_net import SmallNet, events, run, scalars, to_tensorboard, trainer_for
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from callbacks import Overview
from callbacks.overview import add_graph
from datamodules import CIFAR10DataModule


class Scripted(SmallNet):
    """Its validation top-1 is what it is told, epoch by epoch."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        value = 0.99 if self.trainer.sanity_checking else self.values[self.current_epoch]
        self.log("val/top1", torch.tensor(value))


def test_shared_plots(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    run(tmp_path, datamodule, Overview(), epochs=1)
    layout = layout_pb2.Layout()
    layout.ParseFromString(events(tmp_path).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    plots = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert plots == {
        "loss": ["train/loss$", "val/loss$"],
        "top-1": ["train/top1$", "val/top1$"],
        "top-5": ["train/top5$", "val/top5$"],
    }
    assert [category.title for category in layout.category] == ["train and val", "layers"]


def test_config_is_the_runs_file_or_the_settings(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    def config(folder: Path) -> str:
        text: str = events(folder).Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
        assert text.startswith("```yaml\n")
        assert text.endswith("\n```")
        return text[8:-4]

    run(tmp_path / "a", datamodule, Overview(), epochs=1)
    settings = yaml.safe_load(config(tmp_path / "a"))
    assert (settings["lr"], settings["subset_size"], settings["max_epochs"]) == (0.1, 100, 1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.yaml").write_text("some: thing\n")
    run(tmp_path / "b", datamodule, Overview(), epochs=1)
    assert config(tmp_path / "b") == "some: thing"


def test_the_graph_is_the_networks(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    run(tmp_path / "with", datamodule, Overview(), epochs=1)
    nodes = " ".join(node.name for node in events(tmp_path / "with").Graph().node)
    assert all(layer in nodes for layer in ("conv1", "conv2", "fc7", "fc8"))
    run(tmp_path / "without", datamodule, Overview(graph=False), epochs=1)
    assert not events(tmp_path / "without").Tags()["graph"]


def test_a_network_that_cannot_be_traced(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    class Named(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.graph_net, self.net = self.net, None  # type: ignore[assignment]

        def log_probabilities(self, images: Any) -> Any:
            return torch.nn.functional.log_softmax(self.graph_net(images), 1)

    with pytest.warns(UserWarning, match="Overview: the network can't be traced"):
        trainer_for(tmp_path, Overview(), epochs=1).fit(Named(), datamodule)


def test_hparams_row_holds_the_settings_and_the_best_top1(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    values = [float("nan"), 0.2, 0.5, 0.3]
    trainer_for(tmp_path, Overview(), epochs=4, num_sanity_val_steps=1).fit(Scripted(values), datamodule)
    found = scalars(tmp_path, "hp/val_top1")
    assert list(found) == [4, 8, 12, 16]
    assert list(found.values())[1:] == pytest.approx([0.2, 0.5, 0.5])
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    data = multiplexer.PluginRunToTagToContent(metadata.PLUGIN_NAME)
    (tags,) = data.values()
    experiment = metadata.parse_experiment_plugin_data(tags["_hparams_/experiment"])
    assert [info.name.tag for info in experiment.metric_infos] == ["hp/val_top1"]
    row = metadata.parse_session_start_info_plugin_data(tags["_hparams_/session_start_info"]).hparams
    numbers = {"lr": 0.1, "subset_size": 100, "max_epochs": 4}
    assert {name: row[name].number_value for name in numbers} == pytest.approx(numbers)
    assert row["source"].string_value == "shapes10"


def test_a_resumed_run_remembers_its_best(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    _, trainer = run(tmp_path / "a", datamodule, Overview(), model=Scripted([0.7]), epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    run(tmp_path / "b", datamodule, Overview(), model=Scripted([0.0, 0.4]), ckpt_path=tmp_path / "a.ckpt")
    assert list(scalars(tmp_path / "b", "hp/val_top1").values()) == pytest.approx([0.7])
    # The callback itself starts anew with a new fit.
    callback = Overview()
    for folder, best in (("c", 0.7), ("d", 0.1)):
        run(tmp_path / folder, datamodule, callback, model=Scripted([best]), epochs=1)
    assert list(scalars(tmp_path / "d", "hp/val_top1").values()) == pytest.approx([0.1])


def test_a_compiled_network_is_traced_as_it_was_written(tmp_path: Path) -> None:
    net = SmallAlexNet().eval()
    net.compile()
    logger = to_tensorboard(tmp_path)
    with torch.no_grad():
        add_graph(logger, net, torch.rand(1, 3, 24, 24))
    logger.experiment.flush()
    assert any("conv2" in node.name for node in events(tmp_path).Graph().node)
