"""Calls and checks through a real proxy and with real certificates: each problem becomes one clear line."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from deltatap.config import Settings, Timeouts, load_settings
from deltatap.driver.check import _models
from deltatap.driver.needs import checked, process_needs
from deltatap.errors import ConfigError
from deltatap.http.client import EndpointClient
from deltatap.http.credentials import Secrets
from deltatap.http.proxy import proxy_of
from deltatap.http.route import route_of
from deltatap.http.tls import tls_context
from deltatap.model import Call, Wire
from tests.unit.http.test_client import DONE, HI, OK, STOP, chunk, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deltatap.endpoint import Endpoint

WIRE = Wire('{"model":"m","messages":[],"stream":true}', "m", "stream", 1)
MODELS = refusal("200 OK", b'{"data": [{"id": "m"}]}')
PASSWORD = "p@ss/wo:rd"  # noqa: S105 - of the proxy that the test starts
QUOTED = "p%40ss%2Fwo%3Ard"


class Server:
    """Answers every request of every connection, and remembers the heads of the requests."""

    def __init__(self, tls: ssl.SSLContext | None, answer: bytes | None, host: str) -> None:
        self._tls, self._answer = tls, answer
        self.heads: list[bytes] = []
        self.connections = 0
        self.listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port = self.listening.getsockname()[1]

    def accept(self) -> None:
        with suppress(OSError):  # the socket is closed at the end of the test
            while True:
                connected, _ = self.listening.accept()
                threading.Thread(target=self._serve, args=(connected,), daemon=True).start()

    def _serve(self, connected: socket.socket) -> None:
        self.connections += 1
        with connected, suppress(OSError):
            connected.settimeout(20)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is None:
                self._answer_all(connected)
                return
            # In two steps, so that OpenSSL's alert reaches the client before the socket closes.
            encrypted = self._tls.wrap_socket(connected, server_side=True, do_handshake_on_connect=False)
            with encrypted:
                try:
                    encrypted.do_handshake()
                except ssl.SSLError:
                    with socket.socket(fileno=os.dup(encrypted.fileno())) as raw:
                        raw.shutdown(socket.SHUT_WR)
                        while raw.recv(4096):
                            pass
                else:
                    self._answer_all(encrypted)

    def _answer_all(self, connected: socket.socket) -> None:
        with connected.makefile("rb") as reader:
            while head := reader.read(1):
                if head == b"\x16":  # the greeting of TLS
                    connected.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    return
                while not head.endswith(b"\r\n\r\n"):
                    head += reader.readline()
                self.heads.append(head)
                lines = head.lower().split(b"\r\n")
                reader.read(next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0))
                if self._answer is not None:
                    connected.sendall(self._answer)
                    return
                if b"GET " in head[:4]:
                    connected.sendall(MODELS)
                else:
                    connected.sendall(OK + chunk(HI))
                    time.sleep(0.02)
                    connected.sendall(chunk(STOP + DONE) + b"0\r\n\r\n")


@contextmanager
def serving(
    tls: ssl.SSLContext | None = None, answer: bytes | None = None, host: str = "127.0.0.1"
) -> Iterator[Server]:
    """A server in threads of its own, with blocking sockets: asyncio would not send the alerts of TLS."""
    server = Server(tls, answer, host)
    thread = threading.Thread(target=server.accept)
    thread.start()
    try:
        yield server
    finally:
        server.listening.shutdown(socket.SHUT_RDWR)
        server.listening.close()
        thread.join()


class Authority:
    """A certificate authority with its files."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.folder = trustme.CA(), folder
        self.file = str(folder / "ca.pem")
        self.ca.cert_pem.write_to_path(self.file)
        self.client = self.issue("client@example.org")
        self.revoked = self.issue("revoked@example.org")

    def issue(self, *names: str, **given: Any) -> tuple[str, str]:
        leaf = self.ca.issue_cert(*names, **given)
        stem = names[0].replace("@", "-").replace(".", "-") + ("-expired" if given else "")
        certificate, key = self.folder / f"{stem}.crt", self.folder / f"{stem}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(key))
        return str(certificate), str(key)

    def crl(self) -> str:
        """The list of revoked certificates: that of `revoked`."""
        now = datetime.now(UTC)
        key: Any = load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        issuer = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes()).subject
        serial = x509.load_pem_x509_certificate(Path(self.revoked[0]).read_bytes()).serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - timedelta(days=1)).build()
        listed = x509.CertificateRevocationListBuilder().issuer_name(issuer).add_revoked_certificate(entry)
        dated = listed.last_update(now - timedelta(days=1)).next_update(now + timedelta(days=1))
        path = self.folder / "crl.pem"
        path.write_bytes(dated.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return str(path)

    def serving(self, *names: str, clients: bool = False, **given: Any) -> ssl.SSLContext:
        """The context of a server; with `clients`, it requires a client certificate that was not revoked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(*names, **given))
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.file)
            context.load_verify_locations(self.crl())
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The ports of two real proxies: one is open, one requires a user name and a password."""
    folder = tmp_path_factory.mktemp("proxies")
    program = [sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", "0", "--log-level", "ERROR"]
    program += ["--num-workers", "1", "--num-acceptors", "1", "--data-dir", str(folder)]
    options = {"open": [], "guarded": ["--basic-auth", f"user:{PASSWORD}"]}
    started = []
    try:
        for name, extra in options.items():
            command = [*program, "--port-file", str(folder / name), *extra]
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 30
        ports: dict[str, int] = {}
        while len(ports) < len(options):
            assert time.monotonic() < deadline
            time.sleep(0.02)
            for name in options:
                with suppress(OSError, ValueError):
                    ports[name] = int((folder / name).read_text().split()[0])
        yield ports
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "REQUEST_METHOD",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def settings_of(base_url: str, **endpoint: Any) -> Settings:
    return load_settings({"endpoint": {"base_url": base_url, "api_key": None, "model": "m", **endpoint}})


def calls(settings: Settings, count: int = 1) -> list[Call]:
    async def made() -> list[Call]:
        client = EndpointClient(settings.endpoint, Timeouts())
        try:
            return [await asyncio.create_task(client.call(WIRE)) for _ in range(count)]
        finally:
            await client.close()

    return uvloop.run(made())


def call(settings: Settings) -> tuple[str, str | None, str]:
    """Type, code and message of the error of a call, or its status and its text."""
    (made,) = calls(settings)
    if made.error is None:
        return made.status, None, made.received.choices[0].text
    assert "\n" not in made.error.message
    return made.error.type, made.error.code, made.error.message


def network(settings: Settings) -> tuple[str, ...]:
    """The problems that `check` finds in the network."""
    (need,) = (need for need in process_needs(settings) if need.name == "network")
    return checked(need).problems


COMPLETED = ("completed", None, "Hi")


# --- certificates


def test_an_authority_that_the_configuration_names_is_trusted_and_connections_are_reused(authority: Authority) -> None:
    with serving(authority.serving("localhost")) as server:
        settings = settings_of(f"https://localhost:{server.port}/v1", tls={"ca_file": authority.file})
        assert network(settings) == ()
        server.connections = 0
        first, second = calls(settings, 2)
        assert (first.status, second.status, server.connections) == ("completed", "completed", 1)


def test_ssl_cert_file_names_the_trusted_authorities(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(authority.serving("localhost")) as server:
        monkeypatch.setenv("SSL_CERT_FILE", authority.file)
        assert call(settings_of(f"https://localhost:{server.port}/v1")) == COMPLETED


@pytest.mark.parametrize(
    ("names", "given", "own_ca", "expected"),
    [
        (["other.example.org"], {}, True, "is for another host; check endpoint.base_url (Hostname mismatch"),
        (["127.0.0.2"], {}, True, "is for another host; check endpoint.base_url (Hostname mismatch"),
        (
            ["localhost"], {"not_before": datetime(2020, 1, 1), "not_after": datetime(2020, 2, 1)}, True,  # noqa: DTZ001 - trustme takes naive times
            "has expired; the server needs a new one (certificate has expired)",
        ),
        (
            ["localhost"], {"not_before": datetime(2090, 1, 1), "not_after": datetime(2091, 1, 1)}, True,  # noqa: DTZ001 - the same
            "is not valid yet; check the clock of this machine (certificate is not yet valid)",
        ),
        (["localhost"], {}, False, "is not signed by a trusted authority; name the file with the authority's certificate in endpoint.tls.ca_file (self-signed certificate in certificate chain)"),
    ],
)  # fmt: skip
def test_a_certificate_that_is_not_accepted_is_explained(
    authority: Authority, names: list[str], given: dict[str, Any], *, own_ca: bool, expected: str
) -> None:
    context = authority.serving(*names, **given)
    if not own_ca:  # the server also sends the authority's certificate
        chain = Path(authority.folder / "chain.pem")
        chain.write_bytes(Path(authority.issue("localhost")[0]).read_bytes() + Path(authority.file).read_bytes())
        context.load_cert_chain(chain, authority.folder / "localhost.key")
    with serving(context) as server:
        tls = {"ca_file": authority.file} if own_ca else {}
        settings = settings_of(f"https://localhost:{server.port}/v1", tls=tls)
        type_, code, message = call(settings)
        assert (type_, code) == ("connection", "tls")
        assert message.startswith(f"the certificate of localhost:{server.port} {expected}")
        assert network(settings) == (f"endpoint.base_url: {message}",)
        assert server.heads == []


def test_a_self_signed_certificate_is_explained_and_can_be_trusted(authority: Authority, tmp_path: Path) -> None:
    own = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (tmp_path / "key.pem").write_bytes(own.ca.private_key_pem.bytes())
    context.load_cert_chain(own.file, tmp_path / "key.pem")
    with serving(context) as server:
        settings = settings_of(f"https://localhost:{server.port}/v1", tls={"ca_file": authority.file})
        _, code, message = call(settings)
        assert code == "tls"
        assert message.startswith(f"the certificate of localhost:{server.port} is not signed by a trusted authority; ")
        assert network(settings) == (f"endpoint.base_url: {message}",)


def client_files(files: tuple[str, str]) -> dict[str, str]:
    return dict(zip(("client_cert", "client_key"), files, strict=True))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("client", None),
        (None, "client certificate"),
        ("revoked", "refuses the client certificate: it was revoked; name a new one in endpoint.tls.client_cert"),
        ("stranger", "refuses the client certificate: it does not trust the issuer; name another one in endpoint.tls"),
    ],
)
def test_a_server_that_requires_a_client_certificate(
    authority: Authority, tmp_path: Path, shown: str | None, expected: str | None, version: ssl.TLSVersion
) -> None:
    context = authority.serving("localhost", clients=True)
    context.maximum_version = version
    files = Authority(tmp_path).client if shown == "stranger" else getattr(authority, shown) if shown else None
    tls = {"ca_file": authority.file} | (client_files(files) if files else {})
    with serving(context) as server:
        settings = settings_of(f"https://localhost:{server.port}/v1", tls=tls)
        if expected is None:
            assert call(settings) == COMPLETED
            assert _models(settings).detail.startswith("the endpoint lists 1 models, including m")
            return
        type_, code, message = call(settings)
        assert (type_, code) == ("connection", "tls")
        assert message.startswith(f"localhost:{server.port} ")
        assert expected in message
        assert message in _models(settings).detail, "with TLS 1.3, the server refuses after the handshake"
        assert server.heads == []


def test_files_are_checked_before_any_call(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.client
    encrypted, empty, gone = tmp_path / "encrypted.key", tmp_path / "empty.pem", tmp_path / "gone.pem"
    private: Any = load_pem_private_key(Path(key).read_bytes(), None)
    encrypted.write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase"))
    )
    empty.write_text("nothing")
    both = tmp_path / "both.pem"
    both.write_bytes(Path(key).read_bytes() + Path(certificate).read_bytes())
    cases: list[tuple[dict[str, str], str | None]] = [
        ({"ca_file": authority.file}, None),
        ({"client_cert": certificate, "client_key": key}, None),
        ({"client_cert": str(both)}, None),
        ({"ca_file": str(gone)}, f"endpoint.tls.ca_file: {gone}: cannot be read: No such file or directory"),
        ({"ca_file": str(tmp_path)}, f"endpoint.tls.ca_file: {tmp_path}: cannot be read: Is a directory"),
        ({"ca_file": str(empty)}, f"endpoint.tls.ca_file: {empty}: contains no certificate in PEM form ("),
        ({"ca_file": key}, f"endpoint.tls.ca_file: {key}: contains no certificate in PEM form ("),
        ({"client_cert": str(gone), "client_key": key}, f"endpoint.tls.client_cert: {gone}: cannot be read: "),
        ({"client_cert": certificate, "client_key": str(gone)}, f"endpoint.tls.client_key: {gone}: cannot be read: "),
        ({"client_cert": str(empty), "client_key": key}, f"endpoint.tls.client_cert: {empty}: contains no certificate in PEM form ("),
        ({"client_cert": certificate}, f"endpoint.tls.client_cert: {certificate}: contains no private key in PEM form ("),
        ({"client_cert": certificate, "client_key": str(empty)}, f"endpoint.tls.client_key: {empty}: contains no private key in PEM form ("),
        ({"client_cert": certificate, "client_key": authority.revoked[1]}, f"endpoint.tls.client_key: {authority.revoked[1]}: is not the private key of the certificate in {certificate}"),
        ({"client_cert": certificate, "client_key": str(encrypted)}, f"endpoint.tls.client_key: {encrypted}: is encrypted; write the key without a passphrase into a file"),
    ]  # fmt: skip
    for tls, expected in cases:
        settings = settings_of("https://127.0.0.1:9/v1", tls=tls)
        if expected is None:
            tls_context(settings.endpoint.tls)
            continue
        (problem,) = network(settings)
        assert problem.startswith(expected), (tls, problem)


def test_a_missing_ssl_cert_file_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    (problem,) = network(settings_of("https://127.0.0.1:9/v1"))
    assert problem == "the environment variable SSL_CERT_FILE or SSL_CERT_DIR: /nowhere.pem does not exist"


def test_the_wrong_scheme_is_explained(authority: Authority) -> None:
    with serving() as plain:
        settings = settings_of(f"https://127.0.0.1:{plain.port}/v1")
        type_, code, message = call(settings)
        assert (type_, code) == ("connection", "tls")
        assert message.startswith(
            f"127.0.0.1:{plain.port} does not speak TLS; use http:// or another port in endpoint."
        )
        assert network(settings) == (f"endpoint.base_url: {message}",)
    with serving(authority.serving("localhost")) as encrypted:
        settings = settings_of(f"http://127.0.0.1:{encrypted.port}/v1")
        type_, _, message = call(settings)
        assert type_ == "connection"
        assert message.endswith("; if the server expects TLS, use https:// in endpoint.base_url")
        assert message in _models(settings).detail


def test_ipv6(authority: Authority) -> None:
    with serving(host="::1") as server:
        assert call(settings_of(f"http://[::1]:{server.port}/v1")) == COMPLETED
        assert f"Host: [::1]:{server.port}\r\n".encode() in server.heads[0]
    with serving(authority.serving("::1"), host="::1") as server:
        settings = settings_of(f"https://[::1]:{server.port}/v1", tls={"ca_file": authority.file})
        assert call(settings) == COMPLETED
        assert network(settings) == ()


# --- proxies


@pytest.mark.parametrize("with_tls", [True, False])
@pytest.mark.parametrize("proxy", ["open", "guarded"])
def test_a_stream_through_a_proxy(authority: Authority, proxies: dict[str, int], proxy: str, *, with_tls: bool) -> None:
    user = f"user:{QUOTED}@" if proxy == "guarded" else ""
    scheme = "https" if with_tls else "http"
    with serving(authority.serving("localhost") if with_tls else None) as server:
        settings = settings_of(
            f"{scheme}://localhost:{server.port}/v1",
            proxy=f"http://{user}127.0.0.1:{proxies[proxy]}",
            tls={"ca_file": authority.file},
        )
        assert network(settings) == ()
        server.connections = 0
        first, second = calls(settings, 2)
        for made in (first, second):
            assert (made.status, made.received.choices[0].text) == ("completed", "Hi")
            assert made.dispatch_ms is not None
            ms = made.received.chunks.ms
            assert ms[-1] - ms[0] > 10, "chunks arrive as they are sent"
        assert server.connections == 1 or not with_tls, "the tunnel is used again"
        if with_tls:
            assert not any(b"proxy-authorization" in head.lower() for head in server.heads)
        assert _models(settings).detail.startswith("the endpoint lists 1 models")


@pytest.mark.parametrize("with_tls", [True, False])
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "requires a user name and a password (407 Proxy Authentication Required): add them to endpoint.proxy"),
        (
            "user:wr0ng-pass@",
            "refused the user name and password in endpoint.proxy (407 Proxy Authentication Required)",
        ),
    ],
)
def test_a_proxy_that_refuses_the_credentials(
    authority: Authority, proxies: dict[str, int], user: str, expected: str, *, with_tls: bool
) -> None:
    with serving(authority.serving("localhost") if with_tls else None) as server:
        settings = settings_of(
            f"{'https' if with_tls else 'http'}://localhost:{server.port}/v1",
            proxy=f"http://{user}127.0.0.1:{proxies['guarded']}",
        )
        message = f"the proxy 127.0.0.1:{proxies['guarded']} {expected}"
        assert call(settings) == ("connection", "proxy", message)
        assert message in _models(settings).detail
        if with_tls:
            assert network(settings) == (f"endpoint.proxy: {message}",)
        assert server.heads == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 4\r\n\r\nnope", "does not allow connections to localhost:1 (403 Forbidden): ask its administrator"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", "cannot connect to localhost:1 (502 Bad Gateway)"),
        (b"HTTP/1.1 504\r\n\r\n", "cannot connect to localhost:1 (504)"),
        (b"HTTP/1.1 302 Found\r\nlocation: /login\r\n\r\n", "refused to connect to localhost:1 (302 Found)"),
        (b"HTTP/1.1 429 Slow\r\n", "refused to connect to localhost:1 (429 Slow)"),
        (b"HTTP/1.1 407 Auth\r\n\r\n", "requires a user name and a password (407 Auth): add them to endpoint.proxy"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "did not answer as an HTTP proxy does: SSH-2.0-OpenSSH_9.6.."),
        (b"\x15\x03\x01\x00\x02\x02\x46", "did not answer as an HTTP proxy does: ......F"),
        (b"HTTP/1.1 twohundred OK\r\n\r\n", "did not answer as an HTTP proxy does: HTTP/1.1 twohundred OK...."),
        (b"HTTP/1.1 200 OK\r\nx: y\r\n", "did not end its answer as an HTTP proxy does"),
        (b"HTTP/1.1 200 OK\r\n\r\nwelcome", "did not end its answer as an HTTP proxy does"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: %b\r\n" % (b"y" * 100) * 400, "did not end its answer as an HTTP proxy does"),
        (b"", "closed the connection before it answered"),
    ],
)  # fmt: skip
def test_every_other_answer_of_a_proxy(answer: bytes, expected: str) -> None:
    with serving(answer=answer) as proxy:
        settings = settings_of("https://localhost:1/v1", proxy=f"http://127.0.0.1:{proxy.port}")
        message = f"the proxy 127.0.0.1:{proxy.port} {expected}"
        assert call(settings) == ("connection", "proxy", message)
        assert network(settings) == (f"endpoint.proxy: {message}",)
        assert proxy.heads[0].startswith(b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1\r\n")


def test_a_proxy_that_cannot_be_reached() -> None:
    with serving() as proxy:
        pass
    settings = settings_of("https://localhost:1/v1", proxy=f"http://user:{QUOTED}@127.0.0.1:{proxy.port}")
    message = f"cannot connect to the proxy 127.0.0.1:{proxy.port}: Connection refused; check endpoint.proxy"
    assert call(settings) == ("connection", "proxy", message)
    assert network(settings) == (f"endpoint.proxy: {message}",)


@pytest.mark.parametrize("resets", [True, False])
def test_a_proxy_that_resets_the_connection_or_does_not_answer(*, resets: bool) -> None:
    async def made(settings: Settings) -> Call:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if resets:
                now = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            else:
                await reader.read()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            endpoint = settings.endpoint.model_copy(update={"proxy": url})
            client = EndpointClient(endpoint, Timeouts(connect_s=10 if resets else 0.05))
            try:
                return await asyncio.create_task(client.call(WIRE))
            finally:
                await client.close()

    error = asyncio.run(made(settings_of("https://localhost:1/v1"))).error
    assert error is not None
    assert (error.type, error.code) == (("connection", "proxy") if resets else ("timeout", "connect"))
    assert error.message.endswith("closed the connection before it answered" if resets else "(timeouts.connect_s)")


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "-", "nowhere.invalid"])
def test_a_name_that_no_host_has(host: str) -> None:
    settings = settings_of(f"https://{host}/v1")
    type_, _, message = call(settings)
    assert type_ == "connection"
    assert message.startswith(f"{host}:443: ")
    assert network(settings)[0].startswith(f"endpoint.base_url: cannot reach {host} port 443: ")


def test_an_ipv6_server_behind_a_proxy() -> None:
    with serving() as proxy:
        assert call(settings_of("http://[::1]:7/v1", proxy=f"http://u:p@127.0.0.1:{proxy.port}")) == COMPLETED
        head = proxy.heads[0]
        assert head.startswith(b"POST http://[::1]:7/v1/chat/completions HTTP/1.1\r\nHost: [::1]:7\r\n")
        assert b"\r\nProxy-Authorization: Basic dTpw\r\n" in head
    with serving(answer=b"HTTP/1.1 502 Bad Gateway\r\n\r\n") as proxy:
        _, _, message = call(settings_of("https://[::1]:7/v1", proxy=f"http://127.0.0.1:{proxy.port}"))
        assert message.endswith(" cannot connect to [::1]:7 (502 Bad Gateway)")
        assert proxy.heads == [b"CONNECT [::1]:7 HTTP/1.1\r\nHost: [::1]:7\r\n\r\n"]


def test_the_endpoints_own_403_is_not_the_proxys(authority: Authority, proxies: dict[str, int]) -> None:
    refused = refusal("403 Forbidden", b'{"error": {"message": "no"}}')
    with serving(authority.serving("localhost"), answer=refused) as server:
        settings = settings_of(
            f"https://localhost:{server.port}/v1",
            proxy=f"http://127.0.0.1:{proxies['open']}",
            tls={"ca_file": authority.file},
        )
        assert call(settings) == ("permission", None, "no")


def proxy_for(url: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_of(settings_of(url, proxy="env").endpoint, None)
    return None if found is None else f"{found.host}:{found.port}"


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("https://api.x.org/v1", {}, None),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:3128"}, "p:3128"),
        ("https://api.x.org/v1", {"https_proxy": "http://u:w@p:3128/"}, "p:3128"),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "p:3128"}, "p:3128"),
        ("https://api.x.org/v1", {"HTTP_PROXY": "http://p:3128"}, None),
        ("http://api.x.org/v1", {"HTTP_PROXY": "http://p:3128"}, "p:3128"),
        ("https://api.x.org/v1", {"ALL_PROXY": "http://p:3128"}, "p:3128"),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "x.org"}, None),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:1", "no_proxy": "a, .x.org"}, None),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*.x.org"}, None),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "api.x.org:443"}, None),
        ("https://api.x.org:8443/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "api.x.org:443"}, "p:1"),
        ("https://api.x.org/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "pi.x.org,,10.0.0.0/8"}, "p:1"),
        ("https://10.1.2.3/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, None),
        ("https://10.1.2.3/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.1.2.3"}, None),
        ("https://[fd00::7]/v1", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "[fd00::7]"}, None),
        ("https://[fd00::7]/v1", {"HTTPS_PROXY": "http://[fd00::1]:3128"}, "fd00::1:3128"),
        ("http://localhost:8000/v1", {"HTTP_PROXY": "http://p:1"}, None),
        ("http://127.0.0.1:8000/v1", {"HTTP_PROXY": "http://p:1"}, None),
        ("http://[::1]:8000/v1", {"HTTP_PROXY": "http://p:1"}, None),
    ],
)
def test_the_environments_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, environment: dict[str, str], expected: str | None
) -> None:
    assert proxy_for(url, environment, monkeypatch) == expected


@pytest.mark.parametrize("value", ["socks5://p:1", "https://p:1", "ftp://p:1", "http://p:x"])
def test_a_proxy_of_the_environment_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^endpoint.proxy: env: the environment's proxy: (expected|deltatap does not)"
    ):
        proxy_for("https://api.x.org/v1", {"HTTPS_PROXY": value}, monkeypatch)


def test_a_proxys_password_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://user:{QUOTED}@p:3128"
    monkeypatch.setenv("COMPANY_PROXY", url)
    for given in (url, {"env": "COMPANY_PROXY"}):
        settings = settings_of("https://api.x.org/v1", proxy=given)
        Settings.model_validate(settings.model_dump(mode="json"))
        route = route_of(settings.endpoint)
        assert route.proxy is not None
        assert route.proxy.credentials == "Basic dXNlcjpwQHNzL3dvOnJk"
        assert {PASSWORD, QUOTED, "dXNlcjpwQHNzL3dvOnJk"} <= route.secrets
        for shown in (settings.model_dump_json(), repr(settings), repr(route), str(route.proxy)):
            assert not [secret for secret in route.secrets if secret in shown]


# --- headers


def headers_of(endpoint: Endpoint, run_id: str = "") -> dict[str, str]:
    return dict(route_of(endpoint, run_id=run_id).headers)


def test_headers_are_sent_with_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY", "g4teway-secret")
    monkeypatch.setenv("TEST_KEY", "sk-test-4711")
    headers = {
        "X-Run": "run {run_id}!",
        "x-gateway": {"env": "GATEWAY"},
        "X-Team": "a, b",
        "user-agent": "ours",
        "OpenAI-Organization": "org",
    }
    with serving() as server:
        settings = settings_of(f"http://127.0.0.1:{server.port}/v1", headers=headers, api_key={"env": "TEST_KEY"})
        assert call(settings) == COMPLETED
        assert _models(settings).level == "ok"
        for head in server.heads:
            lines = head.split(b"\r\n")
            for line in (
                b"X-Run: run !", b"x-gateway: g4teway-secret", b"X-Team: a, b", b"User-Agent: ours",
                b"OpenAI-Organization: org", b"Authorization: Bearer sk-test-4711",
            ):  # fmt: skip
                name, _, value = line.partition(b": ")
                sent = [other.partition(b": ") for other in lines]
                assert [found for other, _, found in sent if other.lower() == name.lower()] == [value]
    assert headers_of(settings.endpoint, "r1")["X-Run"] == "run r1!"
    assert route_of(settings.endpoint).secrets == {"g4teway-secret"}


def test_secrets_that_the_driver_has_read_are_used_and_hidden() -> None:
    endpoint = settings_of(
        "https://api.x.org/v1",
        headers={"X-Team": {"secret": "team/token"}},
        proxy={"secret": "team/proxy"},
    ).endpoint
    secrets = Secrets({"team/token": "Key t0ken-of-the-team", "team/proxy": "http://u:pa55word@p:3128"})
    route = route_of(endpoint, secrets)
    assert route.headers == {"X-Team": "Key t0ken-of-the-team"}
    assert str(route.proxy) == "the proxy p:3128"
    assert {"Key t0ken-of-the-team", "t0ken-of-the-team", "pa55word"} <= route.secrets
    assert "t0ken" not in repr(route) + repr(secrets)
    assert "pa55word" not in repr(route) + repr(secrets)


def test_a_secret_that_a_server_repeats_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY", "Bearer g4teway-secret")
    refused = refusal("401 X", b'{"error": {"message": "wrong: g4teway-secret (Bearer g4teway-secret)"}}')
    with serving(answer=refused) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        settings = settings_of(url, headers={"X-Gateway": {"env": "GATEWAY"}})
        assert call(settings) == ("authentication", None, "wrong: *** (***)")
        assert _models(settings).detail.endswith("(authentication): wrong: *** (***)")


def test_a_header_may_replace_the_key_and_is_a_secret() -> None:
    with serving() as server:
        settings = settings_of(f"http://127.0.0.1:{server.port}/v1", headers={"authorization": "Basic c2VjcmV0"})
        assert call(settings) == COMPLETED
        assert server.heads[0].lower().count(b"authorization:") == 1
        assert b": Basic c2VjcmV0\r\n" in server.heads[0]
    assert route_of(settings.endpoint).secrets == {"Basic c2VjcmV0", "c2VjcmV0"}
    for shown in (settings.model_dump_json(), repr(settings), repr(route_of(settings.endpoint))):
        assert "c2VjcmV0" not in shown


def test_a_missing_variable_of_a_header_names_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    for endpoint, key in (
        ({"headers": {"X-A": {"env": "NOT_THERE"}}}, "headers.X-A"),
        ({"proxy": {"env": "NOT_THERE"}}, "proxy"),
    ):
        expected = f"endpoint.{key}.env: the environment variable NOT_THERE is not set; set it"
        assert network(settings_of("http://127.0.0.1:9/v1", **endpoint)) == (expected,)
