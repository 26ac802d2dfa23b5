"""A port that is in use is named before anything starts."""

import socket

import pytest

from kyc_pipeline.cli.free_port import require_free
from kyc_pipeline.errors import UsageError


def test_a_busy_port_is_named() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 cannot be used"):
            require_free(port)
    require_free(port)
