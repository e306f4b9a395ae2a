"""What units respond to: the image patches that excite each most (Zeiler and Fergus 2014, Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from callbacks.pure.canvas import Canvas, to_uint8

PATCH, PATCH_GAP, SIDE = 56, 2, 3  # pixels of a patch and between two; patches in a row
BLOCK = SIDE * (PATCH + PATCH_GAP) - PATCH_GAP
COLUMNS, COLUMN_GAP, ROW_STEP, BLOCK_GAP = 4, 24, BLOCK + 36, 8  # units in a row; pixels
LEFT, TOP = 16, 102


def around_grey(signals: Tensor) -> Tensor:
    """Signals ``(n, 3, h, w)`` as images in ``[0, 1]``: 0 is 0.5, the largest of each, of either sign, 0 or 1."""
    largest = signals.abs().amax((1, 2, 3), keepdim=True)
    return 0.5 + signals / (2 * largest).where(largest > 0, 1)


def patch_panel(
    patches: Sequence[Tensor],
    deconvolutions: Sequence[Tensor] | None,
    units: Sequence[int],
    values: Sequence[float],
    title: str = "",
    note: str = "",
) -> Tensor:
    """Draw for each of U units a block of its patches, in reading order, under the unit's number and value.

    Args:
        patches: For each unit ``(n, 3, h, w)`` float RGB in ``[0, 1]``, n from 1 to 9.
        deconvolutions: Likewise, as :func:`around_grey` gives them: a second block to the right of the first; or None.
        units: Their numbers.
        values: What is written beside each number.
        title: Written above.
        note: Written under the title; two lines at most.

    Returns:
        ``(3, H, W)`` uint8. Unit ``u``'s block begins at row ``TOP + u // COLUMNS * ROW_STEP``, column
        ``LEFT + u % COLUMNS * step``, where ``step`` is ``BLOCK + COLUMN_GAP``, with deconvolutions
        ``2 * BLOCK + BLOCK_GAP + COLUMN_GAP``. A ValueError where numbers or shapes don't fit.
    """
    kinds = [patches] if deconvolutions is None else [patches, deconvolutions]
    counts = {len(each) for each in (*kinds, units, values)}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(
            f"patches: of {len(patches)} units, expected as many as the rest, 1 or more. Give one of each."
        )
    for images in (images for kind in kinds for images in kind):
        if images.ndim != 4 or images.shape[1] != 3 or not 1 <= len(images) <= SIDE**2:
            raise ValueError(
                f"patches: {tuple(images.shape)}, expected ({SIDE**2}, 3, h, w). Give a unit 1 to {SIDE**2}."
            )

    width = len(kinds) * (BLOCK + BLOCK_GAP) - BLOCK_GAP
    columns, rows = min(COLUMNS, len(units)), -(-len(units) // COLUMNS)
    canvas = Canvas(2 * LEFT + columns * (width + COLUMN_GAP) - COLUMN_GAP, TOP + rows * ROW_STEP - 16)
    canvas.text(LEFT, 21, title, size=11, bold=True)
    for number, line in enumerate(note.splitlines()):
        canvas.text(LEFT, 43 + 18 * number, line)
    for u, (unit, value) in enumerate(zip(units, values, strict=True)):
        x, y = LEFT + u % COLUMNS * (width + COLUMN_GAP), TOP + u // COLUMNS * ROW_STEP
        canvas.text(x, y - 11, f"unit {unit}", bold=True)
        canvas.text(x + BLOCK, y - 11, f"{value:.3g}", align="right")
        if deconvolutions is not None:
            canvas.text(x + BLOCK + BLOCK_GAP, y - 11, "deconvolution", size=7)
        for kind, blocks in enumerate(kinds):
            _draw_block(canvas, x + kind * (BLOCK + BLOCK_GAP), y, blocks[u])
    return canvas.pixels()


def _draw_block(canvas: Canvas, x: int, y: int, images: Tensor) -> None:
    large = F.interpolate(images.float().cpu(), (PATCH, PATCH), mode="bicubic", align_corners=False, antialias=True)
    for i, image in enumerate(large):
        row, column = divmod(i, SIDE)
        canvas.paste(x + column * (PATCH + PATCH_GAP), y + row * (PATCH + PATCH_GAP), to_uint8(image))
