from __future__ import annotations

from typing import Any

import pytest
import torch

from callbacks.pure.patch_panel import (
    BLOCK,
    BLOCK_GAP,
    COLUMN_GAP,
    COLUMNS,
    LEFT,
    PATCH,
    PATCH_GAP,
    ROW_STEP,
    TOP,
    around_grey,
    patch_panel,
)


@pytest.mark.parametrize("deconvolved", [False, True])
@pytest.mark.parametrize("size", [11, 56, 163])
def test_each_patch_is_in_its_place(size: int, deconvolved: bool, written: list[str]) -> None:
    counts = [9, 9, 3, 9, 9, 1]
    greys = torch.arange(2 * 6 * 9).view(2, 6, 9) * 2 + 10  # of 255
    kinds = [
        [row[:n, None, None, None].div(255).expand(n, 3, size, size) for row, n in zip(kind, counts, strict=True)]
        for kind in greys
    ]
    units, values = [40, 3, 0, 95, 7, 8], [12.345, 1234.5, 1.0, 0.5, 0.25, 0.0012]
    drawn = patch_panel(kinds[0], kinds[1] if deconvolved else None, units, values, "title", "one\ntwo")
    assert drawn.dtype == torch.uint8
    step = COLUMN_GAP + (2 * BLOCK + BLOCK_GAP if deconvolved else BLOCK)
    for kind in range(1 + deconvolved):
        for u, n in enumerate(counts):
            for i in range(9):
                y = TOP + u // COLUMNS * ROW_STEP + i // 3 * (PATCH + PATCH_GAP)
                x = LEFT + u % COLUMNS * step + kind * (BLOCK + BLOCK_GAP) + i % 3 * (PATCH + PATCH_GAP)
                patch = drawn[:, y : y + PATCH, x : x + PATCH]
                assert (patch == (int(greys[kind, u, i]) if i < n else 255)).all()
    assert {"title", "one", "two", "unit 40", "12.3", "1.23e+03", "unit 95", "0.0012"} <= set(written)
    assert ("deconvolution" in written) == deconvolved
    assert int(drawn[:, -3:].min()) == int(drawn[:, :, -3:].min()) == 255


def test_signals_around_grey() -> None:
    signals = torch.tensor([[0.0, 2.0, -1.0], [0.0, 1e-3, -4e-3], [0.0, 0.0, 0.0]]).view(3, 3, 1, 1)
    images = around_grey(signals).view(3, 3)
    assert images.tolist() == [pytest.approx(row) for row in ([0.5, 1, 0.25], [0.5, 0.625, 0], [0.5, 0.5, 0.5])]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patches", []),
        ("patches", [torch.zeros(9, 1, 4, 4)]),
        ("patches", [torch.zeros(10, 3, 4, 4)]),
        ("patches", [torch.zeros(0, 3, 4, 4)]),
        ("deconvolutions", []),
        ("deconvolutions", [torch.zeros(3, 4, 4)]),
        ("units", [1, 2]),
        ("values", []),
    ],
)
def test_bad_panels(name: str, value: Any) -> None:
    good = {"patches": [torch.zeros(9, 3, 4, 4)], "deconvolutions": None, "units": [1], "values": [1.0]}
    with pytest.raises(ValueError, match="^patches: .*, expected"):
        patch_panel(**{**good, name: value})
