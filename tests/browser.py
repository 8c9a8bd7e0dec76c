"""A headless Chromium for the tests of pages, with software rendering."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--window-size=480,900",
)
SCRIPT_SECONDS = 110  # less than the driver's own limit
POLL_SECONDS, RUN_SECONDS = 20, 600  # machines that test much at once are slow


class Browser:
    """One tab. Raises the exceptions of the page's scripts."""

    def __init__(self, *flags: str) -> None:
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium, which drives the browser, is not installed")
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        driver = shutil.which("chromedriver")
        if chromium is None or driver is None:
            pytest.skip("Chromium and its driver are not installed (Debian: chromium chromium-driver)")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, *flags):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.driver.set_script_timeout(SCRIPT_SECONDS)
        self.driver.set_page_load_timeout(SCRIPT_SECONDS)

    def open(self, page: Path, query: str = "") -> None:
        self.driver.get(page.as_uri() + query)

    def run(self, expression: str, *arguments: Any) -> Any:
        """The value of a JavaScript expression, awaited; ``arguments`` is the array of the arguments."""
        self.driver.execute_script(
            f"window.testRun = (async () => ({expression}))()"
            ".then((value) => ({value}), (error) => ({error: String(error.stack)}))",
            *arguments,
        )
        result, deadline = None, time.monotonic() + RUN_SECONDS
        while result is None:
            assert time.monotonic() < deadline, f"no result after {RUN_SECONDS} s: {expression}"
            result = self.driver.execute_async_script(
                f"const done = arguments[0]; setTimeout(() => done(null), {1000 * POLL_SECONDS}); window.testRun.then(done);"
            )
        if "error" in result:
            raise AssertionError(result["error"])
        return result["value"]

    def element(self, identifier: str) -> Any:
        return self.driver.find_element("id", identifier)

    def drag(self, element: Any, dx: int, dy: int) -> None:
        """Press in the middle of ``element``, move by page pixels in two steps, and release."""
        chain = self._action_chains().move_to_element(element).click_and_hold()
        chain.move_by_offset(dx // 2, dy // 2).move_by_offset(dx - dx // 2, dy - dy // 2).release().perform()

    def touch(self, *paths: Sequence[tuple[float, float]]) -> None:
        """Put one finger on the first point of each path, move all along their paths of equal length, and lift them."""
        for i, points in enumerate(zip(*paths, strict=True)):
            fingers = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(points)]
            self._dispatch_touch("touchMove" if i else "touchStart", fingers)
        self._dispatch_touch("touchEnd", [])

    def _dispatch_touch(self, kind: str, fingers: list[dict[str, float]]) -> None:
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

    def prefer(self, color_scheme: str) -> None:
        """Select the system's color scheme: ``light``, ``dark``, or ``""`` for Chromium's default."""
        features = [{"name": "prefers-color-scheme", "value": color_scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def wheel(self, element: Any, dy: int) -> None:
        from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

        self._action_chains().scroll_from_origin(ScrollOrigin.from_element(element), 0, dy).perform()

    def _action_chains(self) -> Any:
        from selenium.webdriver import ActionChains

        return ActionChains(self.driver, duration=50)

    def before_each_page(self, script: str) -> str:
        """Run ``script`` before a page's own scripts, until :meth:`no_longer_before_each_page` gets the returned name."""
        found = self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        return found["identifier"]

    def no_longer_before_each_page(self, identifier: str) -> None:
        self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": identifier})

    def console(self) -> list[str]:
        """Return the console messages since the last call: errors, warnings and output of scripts."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the URLs requested since the last call, without data: and blob:, which make no network request."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        urls = [params["request"]["url"] for params in sent]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def close(self) -> None:
        self.driver.quit()
