"""Images where their features lie, along the two principal axes, as a picture. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from callbacks.pure.canvas import Label, lettered, shortened

SPRITE = 32  # pixels: CIFAR-10's own size. TensorBoard takes one picture of all sprites, at most 8192 pixels wide
MAP_SIDE, MAP_LEFT, MAP_TOP, LEGEND_WIDTH = 760, 16, 62, 150
# Ten colours that differ in lightness too (after Paul Tol); further classes start again.
COLOURS = (
    (51, 34, 136), (136, 204, 238), (68, 170, 153), (17, 119, 51), (153, 153, 51),
    (221, 204, 119), (204, 102, 119), (136, 34, 85), (170, 68, 153), (90, 90, 90),
)  # fmt: skip


def principal_axes(features: Tensor) -> Tensor:
    """Turn features about their mean so that the first axis holds most of their spread, and so on.

    N points span at most N - 1 dimensions: leaving out the others, in which nothing is, changes no distance between
    them. Three hundred fc7 features of 4096 numbers take a fourteenth of the room.

    Args:
        features: ``(N, D)`` float.

    Returns:
        ``(N, min(N - 1, D))`` float32, at least one column. Each axis' sign is such that the largest coordinate on it
        is positive, so that a map is not mirrored from one epoch to the next without need.

    Raises:
        ValueError: If features are no matrix, or not finite.
    """
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"features must be (N, D), got {tuple(features.shape)}")
    if not bool(features.isfinite().all()):
        raise ValueError("features hold NaN or infinite values")
    centred = features.double() - features.double().mean(0)
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    points = (left * sizes)[:, : max(1, min(len(features) - 1, features.shape[1]))]
    largest = points.gather(0, points.abs().argmax(0, keepdim=True))
    return (points * torch.where(largest < 0, -1.0, 1.0)).float()


def embedding_map(
    points: Tensor, images: Tensor, targets: Sequence[int], class_names: Sequence[str], title: str = ""
) -> Tensor:
    """Draw small images where their features lie, framed in the colour of their class.

    Args:
        points: ``(N, 2)`` float, right and up.
        images: ``(N, 3, SPRITE, SPRITE)`` float RGB in ``[0, 1]``.
        targets: N classes.
        class_names: Name of each class.
        title: Written above.

    Returns:
        ``(3, H, W)`` uint8: a square of ``MAP_SIDE`` pixels at ``MAP_TOP``, ``MAP_LEFT``, within which the outermost
        images touch the edges, and a legend. Both axes have one scale.

    Raises:
        ValueError: If the shapes don't fit.
    """
    count = len(points)
    if points.shape != (count, 2) or images.shape != (count, 3, SPRITE, SPRITE) or len(targets) != count or not count:
        raise ValueError(
            f"points must be (N, 2), images (N, 3, {SPRITE}, {SPRITE}) and targets N, got "
            f"{tuple(points.shape)}, {tuple(images.shape)} and {len(targets)}"
        )
    frame = 2
    side = SPRITE + 2 * frame
    points = points.double().cpu()
    low, high = points.amin(0), points.amax(0)
    span = float((high - low).max()) or 1.0
    places = ((points - (low + high) / 2) / span * (MAP_SIDE - side)).round().long() + (MAP_SIDE - side) // 2
    canvas = torch.full((3, MAP_TOP + MAP_SIDE + 16, MAP_LEFT + MAP_SIDE + LEGEND_WIDTH), 255, dtype=torch.uint8)
    canvas[:, MAP_TOP : MAP_TOP + MAP_SIDE, MAP_LEFT : MAP_LEFT + MAP_SIDE] = 246
    labels = [
        Label(MAP_LEFT, 19, title, size=11, weight="bold"),
        Label(MAP_LEFT, 42, "fc7's features along their two principal axes (one scale); near means alike"),
    ]
    pictures = images.detach().float().cpu().clamp(0, 1).mul(255).round().to(torch.uint8)
    colours = torch.tensor(COLOURS, dtype=torch.uint8)
    for (x, y), picture, target in zip(places.tolist(), pictures, targets, strict=True):
        top, left = MAP_TOP + MAP_SIDE - side - y, MAP_LEFT + x
        canvas[:, top : top + side, left : left + side] = colours[target % len(COLOURS)][:, None, None]
        canvas[:, top + frame : top + frame + SPRITE, left + frame : left + frame + SPRITE] = picture
    for target, name in enumerate(class_names):
        top, left = MAP_TOP + 22 * target, MAP_LEFT + MAP_SIDE + 16
        if top + 16 <= canvas.shape[1]:
            canvas[:, top : top + 14, left : left + 14] = colours[target % len(COLOURS)][:, None, None]
            labels.append(Label(left + 22, top + 7, shortened(name)))
    return lettered(canvas, labels)
