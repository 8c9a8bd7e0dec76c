"""Independent readers of meshes: the Khronos glTF validator, and three.js in a browser.

Both come with ``npm install --prefix tests/node``; tests are skipped if they are missing.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NODE = Path(__file__).resolve().parent / "node"
VALIDATE = """
const validator = require(process.argv[1]), bytes = require("fs").readFileSync(process.argv[2]);
validator.validateBytes(new Uint8Array(bytes)).then((report) => console.log(JSON.stringify(report)));
"""


def require_package(name: str) -> Path:
    """Return the folder of an npm package; skip the test if it is not installed."""
    folder = NODE / "node_modules" / name
    if shutil.which("node") is None or not folder.is_dir():
        pytest.skip(f"no {name} here; install Node.js, then npm install --prefix tests/node")
    return folder


def validate_glb(path: Path) -> dict:
    """Return the report of the Khronos validator: ``issues``, with their messages, and ``info``."""
    package = require_package("gltf-validator")
    done = subprocess.run(["node", "-e", VALIDATE, str(package), str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder and return its URL, since browsers load no modules from files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def draw_in_browser(paths: list[Path], folder: Path, cam2world: np.ndarray, fov_degrees: float, size: int) -> list[np.ndarray]:
    """Render each .glb file in ``folder`` with three.js: (size, size, 3) uint8, on black, with uniform lighting."""
    from browser import Browser

    require_package("three")
    shutil.copy(NODE / "draw.html", folder)
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(NODE / "node_modules")
    browser = Browser()
    try:
        with served(folder) as url:
            browser.driver.get(f"{url}/draw.html")
            arguments = [cam2world.T.ravel().tolist(), fov_degrees, size]
            urls = [browser.run("draw(...arguments)", f"{url}/{path.name}", *arguments) for path in paths]
    finally:
        browser.close()
    files = [base64.b64decode(data.split(",", 1)[1]) for data in urls]
    return [np.array(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
