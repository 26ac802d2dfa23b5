"""An HTTP server on loopback that keeps the JSON it is sent, such as a webhook."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass
class Receiver:
    """The bodies that were received, and the statuses of the next responses; 204 after these."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


R = TypeVar("R", bound=Receiver)


@contextmanager
def receiving(receiver: R, path: str = "") -> Iterator[R]:
    """Serves `receiver` and sets its URL; with `path`, at this path only."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert path in ("", self.path)
            status = receiver.statuses.pop(0) if receiver.statuses else 204
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if status < 300:
                receiver.bodies.append(body)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keeps the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}{path}"
        yield receiver
        server.shutdown()
        thread.join()
