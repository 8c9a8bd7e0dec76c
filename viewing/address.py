"""The viewer's HTTP server and the limits of its panel, without PyTorch, which takes seconds to import."""

from __future__ import annotations

import contextlib
import io

import viser

MAX_SHOWN_SEED = 2**31 - 1  # largest value of the page's number box
MIN_PSI, MAX_PSI = 0.0, 1.5  # of the slider
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


class LocalServer(viser.ViserServer):
    """A viser server that rejects requests for public share links."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        return None

    def stop(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # viser's own message
            super().stop()


def open_server(host: str, port: int, label: str) -> LocalServer:
    """Listen on ``host``:``port``, or the next free port. A page that connects shows that ``label`` is loading."""
    with contextlib.redirect_stdout(io.StringIO()):  # viser's own banner
        server = LocalServer(host=host, port=port, label=label, verbose=False)
    server.gui.configure_theme(show_logo=False, show_share_button=False, control_width="small")
    server.gui.add_markdown(f"**{label}** · loading")  # until viewing.server.Viewer resets the panel
    server.scene.set_up_direction("+y")
    return server


def address_of(server: LocalServer, host: str) -> str:
    """URL for a browser on this machine."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "") else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{server.get_port()}"
