"""Whether the port of the UI is free."""

import socket

from kyc_pipeline.errors import UsageError


def require_free(port: int, host: str = "127.0.0.1") -> None:
    """Raises :class:`UsageError` if the port cannot be used."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection may still be closing
            probe.bind(address)
    except OSError as error:
        raise UsageError(
            f"port {port} of {host} cannot be used ({error.strerror}): stop the program that uses it, or "
            "choose another port (--port; with make, DEV_PORT=…)"
        ) from error
