"""Calls and checks with real certificates: each problem becomes one clear line."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from deltatap.driver.check import _models
from deltatap.http.dial import _handshake
from deltatap.http.encryption import Encryption
from deltatap.http.tls import TlsError, tls_context
from tests.networks import COMPLETED, Authority, call, calls, network, serving, settings_of

pytestmark = pytest.mark.usefixtures("environment")


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


def test_a_certificate_is_explained_if_the_server_is_gone_before_the_alert(authority: Authority) -> None:
    client = Encryption(ssl.create_default_context(), "localhost")
    assert not client.handshake()
    greeting, flight = ssl.MemoryBIO(), ssl.MemoryBIO()
    greeting.write(client.outgoing())
    with suppress(ssl.SSLWantReadError):
        authority.serving("localhost").wrap_bio(greeting, flight, server_side=True).do_handshake()
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs:
            theirs.sendall(flight.read())
        with pytest.raises(TlsError, match=r"^the certificate of x:1 is not signed by a trusted authority"):
            asyncio.run(_handshake(ours, client, "x:1"))


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
