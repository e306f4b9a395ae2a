from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers.small_net import inputs_of, png, run

from callbacks import EmbeddingProjector
from callbacks.pure.embedding_map import SPRITE
from datamodules import CIFAR10DataModule


def test_what_the_projector_gets(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    model, _ = run(tmp_path, datamodule, EmbeddingProjector(num_images=10))
    folder = tmp_path / "00008/fc7"
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert 'tensor_path: "00008/fc7/tensors.tsv"' in config
    assert "sprite" in config

    inputs, targets = inputs_of(datamodule, "val", slice(0, 40, 4))
    names = (folder / "metadata.tsv").read_text().split()
    assert names == [datamodule.class_names[t] for t in targets.tolist()]
    with torch.no_grad():
        features = model.eval().embed(inputs)
    points = torch.from_numpy(np.loadtxt(folder / "tensors.tsv", delimiter="\t"))
    torch.testing.assert_close(
        torch.cdist(points, points), torch.cdist(features.double(), features.double()), atol=1e-4, rtol=1e-4
    )
    sprite = png(folder / "sprite.png")
    assert sprite.shape == (4 * SPRITE, 4 * SPRITE, 3)
    rgb = torch.nn.functional.interpolate(datamodule.to_rgb(inputs), (SPRITE, SPRITE), mode="bilinear", antialias=True)
    for i in range(10):
        y, x = i // 4 * SPRITE, i % 4 * SPRITE
        ours = sprite[y : y + SPRITE, x : x + SPRITE].transpose(2, 0, 1) / 255
        assert np.abs(ours - rgb[i].numpy()).max() < 1.1 / 255


def test_every_n_epochs(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    run(tmp_path, datamodule, EmbeddingProjector(1))
    assert len(list(tmp_path.glob("*/fc7/tensors.tsv"))) == 2
