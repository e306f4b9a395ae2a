"""Which pixels of a network's input each position of its layers sees. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReceptiveField(NamedTuple):
    """Position ``(row, column)`` of a layer's output sees a square of pixels, whichever of its units it is.

    It begins at pixel ``(start + row * stride, start + column * stride)`` of the input. Begin or end may lie beyond the
    image's edge, where a layer pads; there the zeros of an inner layer may hide a row of pixels that lie within it.
    """

    size: int = 1
    stride: int = 1
    start: int = 0

    def then(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> ReceptiveField:
        """The field after one more layer."""
        size = self.size + dilation * (kernel - 1) * self.stride
        return ReceptiveField(size, self.stride * stride, self.start - padding * self.stride)


def receptive_fields(network: nn.Module) -> dict[str, ReceptiveField]:
    """The field of each convolution and pooling of a network whose children are run one by one, in their order.

    The others are taken to work on each position by itself, as activation functions do and normalization across
    channels. Zeros that are added at the right and at the bottom, as before AlexNet's conv1, and pools that round up
    move no field: with them there are positions whose fields reach beyond the image's edge.

    Returns:
        By the child's name. A ValueError where a layer is not the same in both directions.
    """
    field, fields = ReceptiveField(), {}
    for name, layer in network.named_children():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            field = field.then(*(_side(name, layer, what) for what in ("kernel_size", "stride", "padding", "dilation")))
            fields[name] = field
    return fields


def _side(name: str, layer: nn.Module, what: str) -> int:
    value = getattr(layer, what, 1)  # AvgPool2d has no dilation
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ValueError(f"{what}: {value} in {name}, expected one number for both directions. Choose a square one.")
    return int(sides.pop())


def crops(images: Tensor, field: ReceptiveField, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """What one position sees of each of B images ``(B, C, H, W)``: ``(B, C, size, size)``, with 0 beyond the edge."""
    height, width = images.shape[2:]
    corners = [
        (field.start + row * field.stride, field.start + column * field.stride)
        for row, column in zip(rows, columns, strict=True)
    ]
    return torch.stack(
        [
            F.pad(image, (-left, left + field.size - width, -top, top + field.size - height))  # below 0 it cuts off
            for image, (top, left) in zip(images, corners, strict=True)
        ]
    )
