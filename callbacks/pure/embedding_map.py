"""Images where their features lie, along the two principal axes, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from callbacks.pure.canvas import Canvas, shortened, to_uint8

SPRITE = 32  # pixels: CIFAR-10's own size. TensorBoard takes one picture of all sprites, at most 8192 pixels wide
MAP_SIDE, MAP_LEFT, MAP_TOP, LEGEND_WIDTH = 760, 16, 62, 150
# Ten colours that differ in lightness too (after Paul Tol); further classes start again.
COLOURS = (
    (51, 34, 136), (136, 204, 238), (68, 170, 153), (17, 119, 51), (153, 153, 51),
    (221, 204, 119), (204, 102, 119), (136, 34, 85), (170, 68, 153), (90, 90, 90),
)  # fmt: skip


def principal_axes(features: Tensor) -> Tensor:
    """Turn finite features ``(N, D)`` about their mean so that the first axis holds most of their spread, and so on.

    N points span at most N - 1 dimensions: leaving out the others changes no distance between them.

    Returns:
        ``(N, min(N - 1, D))`` float32, at least one column. Each axis' sign is such that the largest coordinate on it
        is positive, so that a map is not mirrored from one epoch to the next without need.
    """
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"features: {tuple(features.shape)}, expected (N, D). Flatten each image's features.")
    if not bool(features.isfinite().all()):
        raise ValueError("features: NaN or infinite ones among them, expected finite numbers. Leave such images out.")
    centred = features.double() - features.double().mean(0)
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    points = (left * sizes)[:, : max(1, min(len(features) - 1, features.shape[1]))]
    largest = points.gather(0, points.abs().argmax(0, keepdim=True))
    return (points * torch.where(largest < 0, -1.0, 1.0)).float()


def embedding_map(
    points: Tensor, images: Tensor, targets: Sequence[int], class_names: Sequence[str], title: str = ""
) -> Tensor:
    """Draw small images where their features lie, framed in the colour of their class.

    ``points`` are ``(N, 2)`` float, right and up; ``images`` ``(N, 3, SPRITE, SPRITE)`` float RGB in ``[0, 1]``.

    Returns:
        ``(3, H, W)`` uint8: a square of ``MAP_SIDE`` pixels at ``MAP_TOP``, ``MAP_LEFT``, within which the outermost
        images touch the edges, and a legend. Both axes have one scale. A ValueError where shapes don't fit.
    """
    count = len(targets)
    for name, tensor, shape in (("points", points, (2,)), ("images", images, (3, SPRITE, SPRITE))):
        if tensor.shape != (count, *shape) or not count:
            raise ValueError(f"{name}: {tuple(tensor.shape)}, expected {(count, *shape)}. Give one for each target.")
    side = SPRITE + 4  # with its frame
    points = points.double().cpu()
    low, high = points.amin(0), points.amax(0)
    span = float((high - low).max()) or 1.0
    places = ((points - (low + high) / 2) / span * (MAP_SIDE - side)).round().long() + (MAP_SIDE - side) // 2
    canvas = Canvas(MAP_LEFT + MAP_SIDE + LEGEND_WIDTH, MAP_TOP + MAP_SIDE + 16)
    canvas.text(MAP_LEFT, 19, title, size=11, bold=True)
    canvas.text(MAP_LEFT, 42, "fc7's features along their two principal axes (one scale); near means alike")
    canvas.bar(MAP_LEFT, MAP_TOP, MAP_SIDE, MAP_SIDE, (246, 246, 246))
    for (right, up), picture, target in zip(places.tolist(), to_uint8(images), targets, strict=True):
        x, y = MAP_LEFT + right, MAP_TOP + MAP_SIDE - side - up
        canvas.bar(x, y, side, side, COLOURS[target % len(COLOURS)])
        canvas.paste(x + 2, y + 2, picture)
    for target, name in enumerate(class_names[: MAP_SIDE // 22 + 1]):  # as many as the legend has room for
        x, y = MAP_LEFT + MAP_SIDE + 16, MAP_TOP + 22 * target
        canvas.bar(x, y, 14, 14, COLOURS[target % len(COLOURS)])
        canvas.text(x + 22, y + 7, shortened(name))
    return canvas.pixels()
