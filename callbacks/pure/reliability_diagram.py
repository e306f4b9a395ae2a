"""Whether a network is as often right as it is sure: its calibration error, and a reliability diagram.

Throughout, ``confidences`` ``(N,)`` float in ``[0, 1]`` are the images' highest probabilities, and ``right`` ``(N,)``
says by 1 or 0 whether that class is the right one (Guo et al. 2017, "On Calibration of Modern Neural Networks").
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from callbacks.pure.canvas import INK, Canvas

BINS = 15  # of equal width
LEFT, TOP, BIN_WIDTH = 70, 92, 30  # pixels, of the diagram's square
SIDE = BINS * BIN_WIDTH
HISTOGRAM_TOP, HISTOGRAM_HEIGHT = TOP + SIDE + 50, 90
ACCURACY, GAP, GRID = (141, 160, 203), (253, 190, 133), (240, 240, 240)


def calibration_error(confidences: Tensor, right: Tensor) -> float:
    """The mean over images of how far their bin's accuracy is from its mean confidence: ``[0, 1]``, or NaN for NaN.

    torchmetrics' ``MulticlassCalibrationError`` of 15 bins and norm l1, which takes all probabilities; what it makes of
    them, the confidences, is what its sibling for two classes begins with. Confidences of exactly 1, which the diagram
    has in its last bin, are a bin of their own there.
    """
    if bool(confidences.isnan().any()):
        return float("nan")  # torchmetrics counts them as 0
    return float(binary_calibration_error(confidences.double(), right.double(), BINS, "l1", validate_args=False))


def binned(confidences: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of images, mean confidence and accuracy of each bin, ``(BINS,)`` each; 0 where no image lies."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    bins = torch.bucketize(confidences.double(), edges[1:-1], right=True)  # [lower, upper), the last one with 1
    counts = bins.bincount(minlength=BINS)
    confidence, accuracy = (
        bins.bincount(values.double(), minlength=BINS) / counts.clamp_min(1) for values in (confidences, right)
    )
    return counts, confidence, accuracy


def reliability_diagram(confidences: Tensor, right: Tensor, title: str = "") -> Tensor:
    """Draw accuracy against confidence in bins, and below how many images lie in each.

    Returns:
        ``(3, H, W)`` uint8. Bin ``b`` begins at column ``LEFT + b * BIN_WIDTH``. Its bar, in ``ACCURACY``, rises
        ``accuracy * SIDE`` pixels from row ``TOP + SIDE``; another, in ``GAP``, goes from there to the mean confidence.
        The histogram's rise from row ``HISTOGRAM_TOP + HISTOGRAM_HEIGHT``, the largest by ``HISTOGRAM_HEIGHT``.

    Raises:
        ValueError: Without images, or for NaN.
    """
    if not len(confidences) or bool(confidences.isnan().any()):
        raise ValueError("confidences: none, or NaN among them, expected numbers in [0, 1]. Leave such images out.")
    counts, confidence, accuracy = binned(confidences, right)
    canvas = Canvas(LEFT + SIDE + 210, HISTOGRAM_TOP + HISTOGRAM_HEIGHT + 60)
    canvas.text(16, 19, title, size=11, bold=True)
    error, sure = 100 * calibration_error(confidences, right), 100 * float(confidences.double().mean())
    correct = 100 * float(right.double().mean())
    how = "how far a bin's accuracy is from its confidence, in the mean over images"
    canvas.text(16, 42, f"expected calibration error (ECE) {error:.2f} %: {how}")
    _draw_diagram(canvas, counts, confidence, accuracy)
    _draw_histogram(canvas, counts)
    x = LEFT + SIDE + 24
    for i, (colour, name) in enumerate(((ACCURACY, "accuracy"), (GAP, "gap to mean confidence"))):
        canvas.bar(x, TOP + 22 * i, 14, 14, colour)
        canvas.text(x + 22, TOP + 22 * i + 7, name)
    canvas.text(x, TOP + 51, "dashed: as right as sure")
    said = "too sure" if sure > correct else "not sure enough"
    for i, line in enumerate((f"mean confidence {sure:.2f} %", f"accuracy {correct:.2f} %", f"on average {said}")):
        canvas.text(x, TOP + 96 + 22 * i, line, size=9.5)
    return canvas.pixels()


def _draw_diagram(canvas: Canvas, counts: Tensor, confidence: Tensor, accuracy: Tensor) -> None:
    canvas.text(LEFT, TOP - 18, "accuracy of the images in a bin")
    bottom = TOP + SIDE
    for fifth in range(6):
        y = bottom - fifth * SIDE // 5
        canvas.bar(LEFT, y, SIDE, 1, GRID)
        canvas.text(LEFT - 8, y, f"{20 * fifth} %", align="right")
    heights = ((SIDE * part).round().int().tolist() for part in (accuracy, confidence))
    for i, (count, correct, sure) in enumerate(zip(counts.tolist(), *heights, strict=True)):
        if count:
            x, low, high = LEFT + i * BIN_WIDTH + 1, min(correct, sure), max(correct, sure)
            canvas.bar(x, bottom - correct, BIN_WIDTH - 2, correct, ACCURACY)
            canvas.bar(x, bottom - high, BIN_WIDTH - 2, high - low, GAP)
            canvas.bar(x, bottom - correct - 1, BIN_WIDTH - 2, 2, INK)
    for step in range(0, SIDE, 10):  # the dashed diagonal
        for i in range(step, step + 6):
            canvas.bar(LEFT + i, bottom - i - 1, 1, 2, INK)


def _draw_histogram(canvas: Canvas, counts: Tensor) -> None:
    canvas.text(LEFT, HISTOGRAM_TOP - 32, "images in a bin")
    bottom, most = HISTOGRAM_TOP + HISTOGRAM_HEIGHT, int(counts.max())
    canvas.bar(LEFT, bottom, SIDE, 1, INK)
    for i, count in enumerate(counts.tolist()):
        x, height = LEFT + i * BIN_WIDTH, round(HISTOGRAM_HEIGHT * count / most)
        canvas.bar(x + 1, bottom - height, BIN_WIDTH - 2, height, ACCURACY)
        canvas.text(x + BIN_WIDTH / 2, bottom - height - 9, str(count), size=6.5, align="middle")
    for fifth in range(6):
        canvas.text(LEFT + fifth * SIDE // 5, bottom + 16, f"{20 * fifth} %", align="middle")
    canvas.text(LEFT + SIDE / 2, bottom + 38, "confidence: the highest probability", align="middle")
