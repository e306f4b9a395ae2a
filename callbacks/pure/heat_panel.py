"""Where the evidence for a network's answer lies: images beside heat maps of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import torch
from torch import Tensor

from callbacks.pure.canvas import CELL, RIGHT, WRONG, Canvas, shortened

COLUMNS, LEFT, TOP, GAP = 2, 24, 92, 28
CELL_HEIGHT = CELL + 44


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """An image in grey under its heat: ``(3, h, w)`` float RGB and ``(h, w)`` float to ``(3, h, w)``, in ``[0, 1]``.

    What counts is above 0: the largest value is the brightest, and where there is none the image is grey.
    """
    heat = heat.float().cpu().clamp_min(0)
    heat = heat / heat.max().clamp_min(torch.finfo(heat.dtype).tiny)
    colours = torch.from_numpy(matplotlib.colormaps["inferno"](heat.numpy())[..., :3]).permute(2, 0, 1).float()
    grey = image.float().cpu().mean(0, keepdim=True)
    return grey.lerp(colours, 0.75 * heat.sqrt())


def heat_panel(
    images: Tensor,
    heats: Mapping[str, Tensor],
    said: Sequence[tuple[int, float]],
    targets: Sequence[int],
    class_names: Sequence[str],
    title: str = "",
) -> Tensor:
    """Draw images, each beside its heat maps, over what was said of it and how surely; green: right, red: wrong.

    Args:
        images: ``(N, 3, h, w)`` float RGB in ``[0, 1]``.
        heats: Maps ``(N, h, w)`` float by the names of their methods; what is above 0 speaks for what was said.
        said: The label and its probability, of each.
        targets: The right labels.
        class_names: By label.
        title: Above all.

    Returns:
        ``(3, H, W)`` uint8. Cell ``i`` begins at column ``LEFT + (i % COLUMNS) * (width + GAP)`` and row ``TOP + (i //
        COLUMNS) * CELL_HEIGHT``; in it the image and its maps, each in a square of ``CELL``, which are its width.
    """
    width, rows = (1 + len(heats)) * CELL, -(-len(images) // COLUMNS)
    canvas = Canvas(LEFT + min(COLUMNS, len(images)) * (width + GAP), TOP + rows * CELL_HEIGHT)
    canvas.text(LEFT, 19, title, size=11, bold=True)
    canvas.text(LEFT, 42, "bright: what speaks for the label that was said")
    for i, (label, probability) in enumerate(said):
        left, top = LEFT + i % COLUMNS * (width + GAP), TOP + i // COLUMNS * CELL_HEIGHT
        canvas.image(left, top, images[i])
        for place, (name, heat) in enumerate(heats.items(), 1):
            canvas.image(left + place * CELL, top, overlay(images[i], heat[i]))
            if i < COLUMNS:
                canvas.text(left + place * CELL + CELL // 2, TOP - 12, name, align="middle")
        right = label == targets[i]
        words = f"{shortened(class_names[label])}, {100 * probability:.0f} %"
        words += "" if right else f" (it is {shortened(class_names[targets[i]])})"
        canvas.text(left + 4, top + CELL + 12, words, size=9.5, ink=RIGHT if right else WRONG, bold=True)
    return canvas.pixels()
