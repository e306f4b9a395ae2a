"""The dashboard in a real browser: TensorBoard over a short run, in headless Chromium."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.screenshots import (
    browser,
    lines_of,
    look,
    missing,
    open_tab,
    pictures_of,
    save,
    tensorboard,
    text_of,
    wait,
)
from PIL import Image

RUN = Path("logs/alexnet-shapes10/version_0")
DRAWN = (
    "embedding/val",
    "explanations/test",
    "retrieval/test",
    "top_losses/test",
    "top_patches/conv1",
    "top_patches/conv5",
)
BOTH = ("calibration", "confusion", "predictions")
DRAWN += tuple(f"{name}/{stage}" for name in BOTH for stage in ("val", "test"))
# The newest of each; the test's bears the best epoch.
PICTURES = {tag: f"{tag}_epoch_*.png" for tag in DRAWN} | {"filters/conv1": "conv1_filters/epoch_*.png"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_every_tab_shows_the_run(fit: Callable[..., int]) -> None:
    assert fit("--trainer.log_every_n_steps=1", once="whole") == 0
    shots = Path("screenshots")
    with tensorboard(Path("logs")) as address, browser() as driver:
        # Each picture arrives, whole: with the size of the file in the run's folder.
        sizes = {tag: Image.open(max(RUN.glob(names))).size for tag, names in PICTURES.items()}
        for tags in ([*sizes][:8], [*sizes][8:]):  # a page has room for twelve
            open_tab(driver, address, f"images&tagFilter=^({'|'.join(tags)})$")
            for tag in tags:
                wait(driver, tag, lambda tag=tag: pictures_of(driver).get(tag) == sizes[tag])  # type: ignore[misc]
        save(driver, shots / "images.png")

        open_tab(driver, address, "scalars&tagFilter=^(train/lr|health/gradient_norm|val/top1)$")
        wait(driver, "three curves", lambda: lines_of(driver) >= 3)
        text = text_of(driver)
        assert all(tag in text for tag in ("train/lr", "health/gradient_norm", "val/top1"))
        save(driver, shots / "scalars.png")

        open_tab(driver, address, "custom_scalars")
        wait(driver, "train and val on three plots", lambda: lines_of(driver) >= 6)
        text = text_of(driver)
        assert "train and val" in text
        assert text.count("Matches (2)") >= 3  # two curves on each: not train/loss_step too
        save(driver, shots / "custom_scalars.png")

        open_tab(driver, address, "hparams")
        wait(driver, "a row", lambda: "hp/val_top1" in text_of(driver) and "version_0" in text_of(driver))
        assert "conv1_stride" in text_of(driver)
        save(driver, shots / "hparams.png")

        open_tab(driver, address, "text")
        wait(driver, "config", lambda: "seed_everything: 0" in text_of(driver))
        wait(driver, "tables", lambda: "Most confused:" in text_of(driver) and "checkerboard" in text_of(driver))
        save(driver, shots / "text.png")

        open_tab(driver, address, "graphs")
        wait(driver, "the network", lambda: {"AlexNet", "input", "output"} <= set(text_of(driver).split()))
        save(driver, shots / "graphs.png")

        open_tab(driver, address, "projector")
        wait(driver, "40 points", lambda: "Points: 40" in text_of(driver))
        # Sprites are colourful; points without them, or white ones (uint8 sprites), are not.
        wait(driver, "sprites", lambda: _colourful(look(driver)) > 0.01)
        save(driver, shots / "projector.png")
    assert len(list(shots.iterdir())) == 7


def _colourful(page: Image.Image) -> float:
    """The part of the page's middle that is neither grey nor white. Points and axes alone: a thousandth."""
    middle = page.crop((page.width // 4, page.height // 5, page.width * 3 // 4, page.height))
    saturation = middle.convert("HSV").getchannel("S")
    return sum(saturation.histogram()[80:]) / (middle.width * middle.height)
