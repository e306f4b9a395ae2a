from __future__ import annotations

import numpy as np
import pytest
import torch

from callbacks.pure.embedding_map import COLOURS, MAP_LEFT, MAP_SIDE, MAP_TOP, SPRITE, embedding_map, principal_axes


@pytest.mark.parametrize("shape", [(6, 40), (50, 4), (2, 5), (1, 3)])
def test_principal_axes_keep_distances_and_put_the_largest_spread_first(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, shape[1] + 1) + 7
    points = principal_axes(features)
    assert points.shape == (shape[0], max(1, min(shape[0] - 1, shape[1])))
    theirs, ours = features.double().numpy(), points.double().numpy()
    want = np.linalg.norm(theirs[:, None] - theirs, axis=2)
    np.testing.assert_allclose(np.linalg.norm(ours[:, None] - ours, axis=2), want, rtol=1e-4)
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
    with pytest.raises(ValueError, match=r"points: \(2, 3\), expected \(2, 2\)"):
        embedding_map(torch.zeros(2, 3), images, [0, 1], ["a", "b"])


def test_a_legend_of_many_classes_ends_where_the_map_does() -> None:
    image = embedding_map(torch.zeros(1, 2), torch.zeros(1, 3, SPRITE, SPRITE), [69], [f"class {i}" for i in range(70)])
    bars = image[:, MAP_TOP:, MAP_LEFT + MAP_SIDE + 20]
    starts = [y for y in range(0, bars.shape[1], 22) if bars[:, y].tolist() != [255] * 3]
    assert len(starts) == MAP_SIDE // 22 + 1
    assert [bars[:, y].tolist() for y in starts[:20]] == [list(colour) for colour in COLOURS] * 2
