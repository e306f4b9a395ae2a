from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from callbacks.pure.reliability_diagram import (
    ACCURACY,
    BIN_WIDTH,
    BINS,
    GAP,
    HISTOGRAM_HEIGHT,
    HISTOGRAM_TOP,
    LEFT,
    SIDE,
    TOP,
    binned,
    calibration_error,
    reliability_diagram,
)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 5.0, 100.0])
def test_the_error_is_torchmetrics(sharpness: float) -> None:
    """Where confidences are 1 to the last bit too, which torchmetrics gives a bin of their own."""
    stream = torch.Generator().manual_seed(0)
    probabilities = (sharpness * torch.randn(500, 10, generator=stream)).softmax(1)
    targets = torch.randint(10, (500,), generator=stream)
    confidences, predicted = probabilities.max(1)
    want = multiclass_calibration_error(probabilities, targets, 10, n_bins=15, norm="l1")
    assert calibration_error(confidences, predicted == targets) == pytest.approx(float(want), abs=1e-6)
    assert (confidences == 1).any() == (sharpness == 100)


def test_bins_by_hand() -> None:
    confidences = torch.tensor([0.0, 0.05, 0.5, 0.51, 0.99, 1.0])
    counts, confidence, accuracy = binned(confidences, torch.tensor([1, 0, 1, 0, 1, 1]))
    assert {i: n for i, n in enumerate(counts.tolist()) if n} == {0: 2, 7: 2, 14: 2}
    assert confidence[[0, 7, 14]].tolist() == pytest.approx([0.025, 0.505, 0.995])
    assert accuracy[[0, 7, 14]].tolist() == [0.5, 0.5, 1.0]


def heights(image: torch.Tensor, number: int, top: int, bottom: int, colour: tuple[int, int, int]) -> list[int]:
    """How far above ``bottom`` a bin's column has the colour, one pixel from the bin's left edge."""
    column = image[:, top:bottom, LEFT + number * BIN_WIDTH + 1].T.tolist()
    return [bottom - top - row for row, pixel in enumerate(column) if tuple(pixel) == colour]


def test_the_diagram(written: list[str]) -> None:
    # Of ten images in bin 12 eight are right, of thirty in the last bin half.
    confidences = torch.cat([torch.full((10,), 0.85), torch.full((30,), 0.98)])
    right = torch.tensor([1] * 8 + [0] * 2 + [1] * 15 + [0] * 15)
    image = reliability_diagram(confidences, right, "a title")
    for number, accuracy, confidence, share in ((12, 0.8, 0.85, 1 / 3), (14, 0.5, 0.98, 1.0)):
        bars = heights(image, number, TOP, TOP + SIDE, ACCURACY)
        gaps = heights(image, number, TOP, TOP + SIDE, GAP)
        # A dark line of two pixels lies between them.
        assert max(bars) == pytest.approx(accuracy * SIDE, abs=2)
        assert (min(gaps), max(gaps)) == pytest.approx((accuracy * SIDE, confidence * SIDE), abs=3)
        counted = heights(image, number, HISTOGRAM_TOP, HISTOGRAM_TOP + HISTOGRAM_HEIGHT, ACCURACY)
        assert len(counted) == pytest.approx(share * HISTOGRAM_HEIGHT, abs=1)
    assert not heights(image, 3, TOP, TOP + SIDE, ACCURACY)
    error = 0.25 * 5 + 0.75 * 48
    assert written[0] == "a title"
    assert written[1].startswith(f"expected calibration error (ECE) {error:.2f} %")
    assert {"on average too sure", "accuracy 57.50 %", "mean confidence 94.75 %", "10", "30"} <= {*written}
    assert len([text for text in written if text == "0"]) == BINS - 2


def test_unsure_and_refused(written: list[str]) -> None:
    image = reliability_diagram(torch.tensor([0.25]), torch.tensor([1]))
    gaps = heights(image, 3, TOP, TOP + SIDE, GAP)  # from the top down
    assert min(gaps) == pytest.approx(0.25 * SIDE, abs=3)
    assert "on average not sure enough" in written
    for bad in (torch.zeros(0), torch.tensor([float("nan")])):
        with pytest.raises(ValueError, match="confidences: none, or NaN among them"):
            reliability_diagram(bad, torch.ones(len(bad)))
