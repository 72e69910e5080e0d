"""A server with certificates of its own authority, and calls to it: for tests of TLS, proxies and headers."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    load_pem_private_key,
)

from deltatap.config import Settings, Timeouts
from deltatap.driver.needs import checked, process_needs
from deltatap.http.client import EndpointClient
from deltatap.model import Call, Wire
from deltatap.settings_loading import load_settings
from tests.calls import DONE, HI, OK, STOP, chunk, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator


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
                    time.sleep(0.1)
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
