from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_net import png, run

from callbacks import EmbeddingProjector
from callbacks.pure.embedding_map import COLOURS, MAP_LEFT, MAP_SIDE, MAP_TOP, SPRITE, embedding_map, principal_axes
from datamodules import CIFAR10DataModule


@pytest.mark.parametrize("shape", [(6, 40), (50, 4), (2, 5), (1, 3)])
def test_principal_axes_keep_distances_and_put_the_largest_spread_first(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, shape[1] + 1) + 7
    points = principal_axes(features)
    assert points.shape == (shape[0], max(1, min(shape[0] - 1, shape[1])))
    theirs = features.numpy().astype(np.float64)
    ours = points.numpy().astype(np.float64)
    for i in range(shape[0]):
        for j in range(i):
            want = np.sqrt(((theirs[i] - theirs[j]) ** 2).sum())
            assert np.sqrt(((ours[i] - ours[j]) ** 2).sum()) == pytest.approx(want, rel=1e-4)
    if shape[0] > 2:
        # The variances along the axes are the eigenvalues of the covariance.
        eigenvalues = np.linalg.eigvalsh(np.cov(theirs.T))[::-1][: points.shape[1]]
        np.testing.assert_allclose(ours.var(axis=0, ddof=1), eigenvalues, rtol=1e-4)
    assert (points.amax(0) >= -points.amin(0) - 1e-6).all()


def test_principal_axes_refuse() -> None:
    for bad, message in ((torch.rand(3), r"\(N, D\)"), (torch.full((3, 2), float("nan")), "NaN")):
        with pytest.raises(ValueError, match=message):
            principal_axes(bad)


def test_the_map() -> None:
    images = torch.stack([torch.full((3, SPRITE, SPRITE), value) for value in (0.0, 1.0)])
    image = embedding_map(torch.tensor([[0.0, 0.0], [2.0, 1.0]]), images, [1, 0], ["a", "b"])
    side = SPRITE + 4
    # The first lies at the left edge, a quarter up; the second at the right edge, three quarters up.
    for (left, up), target, value in (((0, 0.25), 1, 0), ((MAP_SIDE - side, 0.75), 0, 255)):
        top = MAP_TOP + round((1 - up) * (MAP_SIDE - side))
        assert image[:, top, MAP_LEFT + left].tolist() == pytest.approx(COLOURS[target], abs=0)
        assert image[:, top + side // 2, MAP_LEFT + left + side // 2].tolist() == [value] * 3
    assert embedding_map(torch.zeros(2, 2), images, [0, 1], ["a", "b"]).shape == image.shape  # all in one place
    with pytest.raises(ValueError, match="points must be"):
        embedding_map(torch.zeros(2, 3), images, [0, 1], ["a", "b"])


def test_what_the_projector_gets(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    model, _ = run(tmp_path, datamodule, EmbeddingProjector(num_images=10))
    folder = tmp_path / "00008/fc7"
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert 'tensor_path: "00008/fc7/tensors.tsv"' in config
    assert "sprite" in config

    places = datamodule.split.val[[4 * i for i in range(10)]]
    raw, targets = datamodule.images_in("train")
    inputs = datamodule._to_input(raw[places])
    names = (folder / "metadata.tsv").read_text().split()
    assert names == [datamodule.class_names[t] for t in targets[places].tolist()]
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


def test_every_n_epochs_and_nan(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    run(tmp_path / "often", datamodule, EmbeddingProjector(1))
    assert len(list((tmp_path / "often").glob("*/fc7/tensors.tsv"))) == 2

    class Diverges(EmbeddingProjector):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.net.fc7.weight.data.fill_(float("nan"))
            super().on_train_end(trainer, pl_module)

    with pytest.warns(UserWarning, match="Diverges: features are NaN"):
        run(tmp_path / "nan", datamodule, Diverges())
    assert not list((tmp_path / "nan").glob("*/fc7/*"))
    with pytest.raises(ValueError, match="num_images: 1 is below 2, expected"):
        EmbeddingProjector(num_images=1)
