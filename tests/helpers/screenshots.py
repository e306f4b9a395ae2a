"""TensorBoard in headless Chromium, over a run's log folder; as a command, the README's pictures of a shapes10 run.

python scripts/fit.py --data.source shapes10 --trainer.logger.init_args.save_dir /tmp/dashboard
python tests/helpers/screenshots.py /tmp/dashboard docs

Needs Chromium and its driver (Debian: ``apt-get install chromium chromium-driver``) and ``pip install -e ".[dev]"``.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

CHROMIUM, DRIVER = ("chromium", "chromium-browser", "google-chrome"), "chromedriver"
FLAGS = (
    "--headless",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # WebGL without a graphics card: the projector needs it
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
# TensorBoard's elements hide in shadow roots and frames: this collects all of them.
EVERYTHING = """
    const all = [];
    const walk = root => {
        for (const e of root.querySelectorAll('*')) {
            all.push(e);
            if (e.shadowRoot) walk(e.shadowRoot);
            if (e.tagName == 'IFRAME' && e.contentDocument) walk(e.contentDocument);
        }
    };
    walk(document);
    const seen = e => e.getClientRects().length > 0;
"""
SECONDS = 240  # for a page to show what it should, on a machine with other things to do


def missing() -> str | None:
    """What is not installed that a browser needs, for people; None if all is there."""
    if not any(map(shutil.which, CHROMIUM)) or not shutil.which(DRIVER):
        return "chromium and chromedriver: not there, expected both. Debian: apt-get install chromium chromium-driver"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return 'selenium: not there, expected the package. pip install -e ".[dev]"'
    return None


@contextmanager
def tensorboard(logs: Path) -> Iterator[str]:
    """Run TensorBoard over a log folder on a free loopback port; its address.

    Raises:
        RuntimeError: If it ends before it has said where it is.
    """
    words = ["--logdir", str(logs), "--host", "127.0.0.1", "--port", "0", "--samples_per_plugin", "images=200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        said = []
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)
            if address:
                break
        else:
            raise RuntimeError(f"TensorBoard did not start: {''.join(said)[-2000:]}")
        yield address[0]
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def browser(width: int = 1400, height: int = 1000) -> Iterator[Chrome]:
    """Headless Chromium with a profile of its own, gone afterwards; a window of so many pixels."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, CHROMIUM)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, Service(shutil.which(DRIVER)))
        driver.set_script_timeout(SECONDS)
        try:
            yield driver
        finally:
            driver.quit()


def ask(driver: Chrome, script: str) -> Any:
    """Run JavaScript that finds every element in ``all``, and can ask whether it is ``seen``."""
    return driver.execute_script(EVERYTHING + script)


def wait(driver: Chrome, what: str, found: Callable[[], Any]) -> Any:
    """Wait until something is found, and return it.

    Raises:
        TimeoutError: With what was waited for.
    """
    from selenium.common.exceptions import JavascriptException, StaleElementReferenceException, TimeoutException
    from selenium.webdriver.support.wait import WebDriverWait

    ignored = (JavascriptException, StaleElementReferenceException)
    try:
        return WebDriverWait(driver, SECONDS, 0.5, ignored).until(lambda _: found())
    except TimeoutException:
        raise TimeoutError(f"{driver.current_url}: no {what} within {SECONDS} seconds") from None


def text_of(driver: Chrome) -> str:
    """All text that can be seen on the page, one space between its pieces."""
    script = """
        const own = e => [...e.childNodes].filter(n => n.nodeType == Node.TEXT_NODE).map(n => n.textContent).join(' ');
        return all.filter(e => !/^(STYLE|SCRIPT|TITLE)$/i.test(e.tagName) && seen(e)).map(own).join(' ');
    """
    return " ".join(str(ask(driver, script)).split())


def pictures_of(driver: Chrome) -> dict[str, tuple[int, int]]:
    """Tag -> natural width and height, of each of the images tab's pictures that arrived and was decoded."""
    script = "return all.filter(e => e.tagName == 'IMG' && seen(e)).map(e => [e.src, e.naturalWidth, e.naturalHeight])"
    found = {}
    for source, width, height in ask(driver, script):
        key = re.search(r"blob_key=([\w-]+)", source)
        if key and width > 0:
            # TensorBoard's name of a picture: base64 of [experiment, run, tag, ...]
            names = json.loads(base64.urlsafe_b64decode(key[1] + "=" * (-len(key[1]) % 4)))
            found[next(name for name in names[2:] if isinstance(name, str) and "/" in name)] = (width, height)
    return found


def lines_of(driver: Chrome) -> int:
    """How many curves are drawn."""
    return int(ask(driver, "return all.filter(e => e.matches('path.line') && e.getTotalLength() > 20).length"))


def open_tab(driver: Chrome, address: str, tab: str) -> None:
    """Go to one of TensorBoard's tabs; behind its name there may be settings, as TensorBoard writes them."""
    driver.get("about:blank")  # a page that differs after the # only would not be loaded anew
    driver.get(f"{address}#{tab}")


def look(driver: Chrome) -> Image.Image:
    """What the browser shows."""
    return Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")


def save(driver: Chrome, path: Path, colours: int = 64) -> None:
    """Save what the browser shows as a small PNG of so many colours."""
    shown = look(driver)
    path.parent.mkdir(parents=True, exist_ok=True)
    dither = Image.Dither.FLOYDSTEINBERG if colours > 64 else Image.Dither.NONE  # photographs, or letters and lines
    shown.quantize(colours, dither=dither).save(path, optimize=True)


def take(logs: Path, folder: Path) -> list[Path]:
    """Take all pictures of TensorBoard's log folder, of one run with the default callbacks; the files."""
    saved = []
    with tensorboard(logs) as address, browser(1600, 900) as driver:

        def shoot(name: str, tab: str, ready: Callable[[], Any], colours: int = 64) -> None:
            open_tab(driver, address, tab)
            wait(driver, name, ready)
            time.sleep(5)  # what moves into its place has arrived there; the projector turns for ever
            saved.append(folder / f"dashboard_{name}.png")
            save(driver, saved[-1], colours)

        images = "images&tagFilter=predictions%2Fval%7Cconfusion%2Fval%7Cfilters%2Fconv1"
        shoot("images", images, lambda: len(pictures_of(driver)) >= 3, colours=256)
        shoot("custom_scalars", "custom_scalars&_smoothingWeight=0", lambda: lines_of(driver) >= 6)
        shoot("projector", "projector", lambda: "Points: 300" in text_of(driver), colours=256)
        shoot("hparams", "hparams", lambda: "hp/val_top1" in text_of(driver))
    return saved


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("logs", type=Path, help="log folder of a run")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs"), help="where the pictures go")
    arguments = parser.parse_args()
    lack = missing()
    if not list(arguments.logs.rglob("events.out.tfevents.*")):
        lack = f"logs: {arguments.logs} holds no run, expected the log folder of one. Train first, or name another"
    if lack:
        parser.exit(2, f"error: {lack}.\n")
    for path in take(arguments.logs, arguments.folder):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
