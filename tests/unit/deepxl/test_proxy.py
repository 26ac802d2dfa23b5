"""A proxy and a private certificate authority: by settings only. Both are real, on loopback."""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from kyc_pipeline.deepxl.call_errors import DeepXLError, Sent
from kyc_pipeline.deepxl.client import DeepXLClient, VerificationRequest
from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.errors import UsageError
from kyc_pipeline.settings import Settings

LOGIN = "Basic " + base64.b64encode(b"kyc:pass word").decode()
Request = Callable[..., VerificationRequest]


def write_certificates(folder: Path) -> tuple[Path, Path]:
    """The file of a private authority, and that of the certificate and key of `localhost`."""
    now = datetime.now(UTC)

    def certificate(name: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = (
        certificate("Example CA", "Example CA", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority, hashes.SHA256())
    )
    leaf = (
        certificate("localhost", "Example CA", server)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    ca_file, server_file = folder / "ca.pem", folder / "server.pem"
    ca_file.write_bytes(root.public_bytes(pem))
    key = server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    server_file.write_bytes(leaf.public_bytes(pem) + key)
    return ca_file, server_file


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    """Connects a stream with a server until one of both ends."""
    far_reader, far_writer = await asyncio.open_connection(host, port)

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    try:
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
    finally:
        for each in (writer, far_writer):
            each.close()
            with contextlib.suppress(OSError):
                await each.wait_closed()


class Network:
    """The simulator behind TLS, and a proxy that wants a login."""

    def __init__(self, simulator: Simulator, folder: Path) -> None:
        self.simulator = simulator
        self.ca_file, self._server_file = write_certificates(folder)
        self.connects: list[str] = []
        self.login = LOGIN

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sets `url` and `proxy`."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self._server_file)
        api = int(self.simulator.url.rpartition(":")[2])
        handlers: set[asyncio.Task[None] | None] = set()

        async def terminate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            handlers.add(asyncio.current_task())
            await relay(reader, writer, "127.0.0.1", api)

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            handlers.add(asyncio.current_task())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.connects.append(head.splitlines()[0])
            if f"proxy-authorization: {self.login}".lower() not in head.lower():
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                writer.close()
                return
            host, _, port = head.split()[1].rpartition(":")
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await relay(reader, writer, host, int(port))

        server = await asyncio.start_server(terminate, "127.0.0.1", 0, ssl=tls)
        proxy = await asyncio.start_server(connect, "127.0.0.1", 0)
        async with server, proxy:
            self.url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
            self.proxy = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
            yield
        # Their clients have gone, so they end.
        await asyncio.gather(*filter(None, handlers), return_exceptions=True)

    def client(self, token: str, *, proxy: bool = True, ca: bool = True) -> DeepXLClient:
        settings = Settings(
            _env_file=None,
            deepxl_base_url=self.url,
            deepxl_api_token=SecretStr(token),
            deepxl_proxy=SecretStr(f"http://kyc:pass%20word@{self.proxy}") if proxy else None,
            deepxl_ca_file=self.ca_file if ca else None,
        )
        return DeepXLClient.of(settings)


@pytest.fixture
def network(tmp_path: Path, token: str) -> Iterator[Network]:
    with running_simulator(token=token) as simulator:
        yield Network(simulator, tmp_path)


def test_a_call_through_a_proxy_to_a_server_of_a_private_authority(
    network: Network, make_request: Request, token: str
) -> None:
    async def call() -> int:
        async with network.running(), network.client(token) as client:
            response = await client.verify(make_request("s-1"))
            await client.verify(make_request("s-2"), fresh=True)
            return response.verification_id

    assert asyncio.run(call()) > 0
    assert dict(network.simulator.received) == {"s-1": 1, "s-2": 1}
    host = network.url.removeprefix("https://")
    assert network.connects == [f"CONNECT {host} HTTP/1.1"] * 2


def test_the_environment_changes_nothing(
    network: Network, make_request: Request, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call() -> None:
        async with network.running():
            for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
                monkeypatch.setenv(name, f"http://{network.proxy}")
            monkeypatch.setenv("SSL_CERT_FILE", str(network.ca_file))
            async with network.client(token, proxy=False, ca=False) as client:
                with pytest.raises(DeepXLError) as caught:
                    await client.verify(make_request("s-1"))
                assert caught.value.sent is Sent.NOTHING
            async with network.client(token, proxy=False) as client:
                await client.verify(make_request("s-1"))

    asyncio.run(call())
    assert network.connects == []
    assert dict(network.simulator.received) == {"s-1": 1}


def test_a_proxy_that_refuses_is_an_error_without_a_call_and_without_the_password(
    network: Network, make_request: Request, token: str
) -> None:
    network.login = "another"

    async def call() -> DeepXLError:
        async with network.running(), network.client(token) as client:
            with pytest.raises(DeepXLError) as caught:
                await client.verify(make_request("s-1"))
            return caught.value

    error = asyncio.run(call())
    assert error.sent is Sent.NOTHING
    assert "pass" not in str(error)
    assert len(network.connects) == 1
    assert not network.simulator.received


@pytest.mark.parametrize("content", [None, b"", b"not a certificate"])
def test_a_certificate_file_that_is_none_is_a_usage_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match="DEEPXL_CA_FILE: no certificate can be read from"):
        DeepXLClient("https://api.example", SecretStr("t"), ca_file=file)
