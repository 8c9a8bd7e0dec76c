"""Take the screenshots in docs/viewer.md: viewer.png and page_widths.png, in windows 360 and 1200 px wide.

    python tests/screenshots.py

Needs Chromium and chromedriver (Debian: chromium chromium-driver), and selenium.
"""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from browser import Browser

DOCS = Path(__file__).resolve().parent.parent / "docs"
WIDTHS, HEIGHT, GAP = (360, 1200), 700, 16  # px
MAX_SECONDS = 120
DRAG = (-50, 12)  # px, in the wide window of the viewer


def screenshot(browser: Browser) -> Image.Image:
    return Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")


def at_rest(browser: Browser) -> Image.Image:
    """Return a screenshot that equals the previous one, a second earlier."""
    before, deadline = screenshot(browser), time.monotonic() + MAX_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)
        image = screenshot(browser)
        if image == before:
            return image
        before = image
    raise SystemExit("the page did not come to rest")


def resize(browser: Browser, width: int) -> None:
    """Set the size of the page. Chromium's windows cannot be as narrow as a phone's."""
    size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def viewer_screenshots(browser: Browser, address: str) -> list[Image.Image]:
    images = []
    for width in WIDTHS:
        resize(browser, width)
        browser.driver.get(address)
        deadline = time.monotonic() + MAX_SECONDS
        while "px in" not in browser.driver.page_source:  # the panel's line about the first full frame
            if time.monotonic() > deadline:
                raise SystemExit("the viewer shows no image")
            time.sleep(1)
        at_rest(browser)
        for button in browser.driver.find_elements("css selector", ".mantine-Notification-closeButton"):
            button.click()  # a warning that the browser renders in software
        if width == WIDTHS[-1]:
            browser.drag(browser.driver.find_element("css selector", "canvas"), *DRAG)
        images.append(at_rest(browser))
    return images


def page_screenshots(browser: Browser, page: Path) -> list[Image.Image]:
    images = []
    for width in WIDTHS:
        resize(browser, width)
        browser.open(page, "?seed=3")
        browser.run("gof.viewer.settled().then(() => true)")
        images.append(at_rest(browser))
    return images


def save_side_by_side(images: Sequence[Image.Image], path: Path) -> None:
    canvas = Image.new("RGB", (sum(image.width for image in images) + GAP * (len(images) - 1), HEIGHT), "gray")
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width + GAP
    canvas.quantize(256).save(path, optimize=True)
    print(f"wrote {path}")


def main() -> None:
    browser = Browser()
    viewer = subprocess.Popen([sys.executable, "view.py", "cats"], cwd=DOCS.parent, stdout=subprocess.PIPE, text=True)
    try:
        address = next(word for word in viewer.stdout.readline().split() if word.startswith("http"))
        save_side_by_side(viewer_screenshots(browser, address), DOCS / "viewer.png")
        save_side_by_side(page_screenshots(browser, DOCS / "demo.html"), DOCS / "page_widths.png")
    finally:
        viewer.terminate()
        browser.close()


if __name__ == "__main__":
    main()
