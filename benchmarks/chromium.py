"""A headless Chromium with software rendering, for the benchmarks of pages."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from common.errors import UserError

T = TypeVar("T")

FLAGS = ("--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@contextmanager
def open_chromium(width: int, height: int, *flags: str) -> Iterator[Any]:
    """Yield a Selenium driver with a window of ``width`` x ``height`` pixels. Raises UserError without Selenium or a browser."""
    try:
        from selenium import webdriver
    except ImportError:
        raise UserError("selenium is not installed; pip install selenium") from None
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver_path is None:
        raise UserError("Chromium or its driver is not installed; apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--window-size={width},{height}", *flags):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    try:
        yield driver
    finally:
        driver.quit()


def wait_for(value: Callable[[], T | None], max_seconds: float) -> T:
    """Return the first value that is neither None nor False. Raises UserError after ``max_seconds``."""
    deadline = time.perf_counter() + max_seconds
    while not (found := value()):
        if time.perf_counter() > deadline:
            raise UserError(f"the page showed no result within {max_seconds:.0f} s")
        time.sleep(0.02)
    return found
