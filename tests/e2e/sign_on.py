"""A stand-in for oauth2-proxy, which Debian and PyPI do not have: it answers 202 or 401 as that does."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNED_IN = {"Cookie": "session=ann"}


class _SignOn(http.server.BaseHTTPRequestHandler):
    """Knows one session."""

    def do_GET(self) -> None:
        is_check = self.path == "/oauth2/auth"
        known = self.headers.get("Cookie") == SIGNED_IN["Cookie"]
        self.send_response((202 if known else 401) if is_check else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def running_sign_on(port: int = 0) -> Iterator[int]:
    """Serves on loopback while the block runs; yields the port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), _SignOn) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()
