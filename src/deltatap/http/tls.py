"""TLS: which certificates deltatap trusts and shows, and how to explain a failed handshake.

Knows the files in ``endpoint.tls`` and the errors of OpenSSL. Leaves connecting to ``dial.py``.
"""

from __future__ import annotations

import os
import ssl
import sys
from typing import TYPE_CHECKING

import httpx2
import truststore

from deltatap.errors import ConfigError

if TYPE_CHECKING:
    from deltatap.endpoint import Tls


class TlsError(httpx2.ConnectError):
    """The TLS connection to the server failed. The message says what to do.

    Attributes:
        code: the ``error.code`` of the row.
    """

    code = "tls"


def tls_context(tls: Tls) -> ssl.SSLContext:
    """The context for every connection to the endpoint.

    The trusted authorities are those of the system: the keychain of macOS, the certificate store of Windows, OpenSSL's
    files elsewhere. SSL_CERT_FILE and SSL_CERT_DIR replace them, `ca_file` adds to them.

    Raises:
        ConfigError: a file is missing, cannot be read, or is not of the expected kind.
    """
    replaced = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    context: ssl.SSLContext
    if replaced or sys.platform not in ("darwin", "win32"):
        if replaced and not os.path.exists(replaced):  # noqa: PTH110 - OpenSSL would ignore it silently
            raise ConfigError([f"the environment variable SSL_CERT_FILE or SSL_CERT_DIR: {replaced} does not exist"])
        context = ssl.create_default_context()
    else:
        context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca_file is not None:
        where = f"endpoint.tls.ca_file: {tls.ca_file}"
        _readable(tls.ca_file, where)
        try:
            context.load_verify_locations(cafile=tls.ca_file)
        except ssl.SSLError as error:
            raise ConfigError([f"{where}: contains no certificate in PEM form ({_reason(error)})"]) from error
    if tls.client_cert is not None:
        _show(context, tls.client_cert, tls.client_key)
    return context


def _show(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    """Load the certificate that identifies deltatap to the server."""
    where = f"endpoint.tls.client_cert: {certificate}"
    where_key = where if key is None else f"endpoint.tls.client_key: {key}"
    _readable(certificate, where)
    if key is not None:
        _readable(key, where_key)

    def passphrase() -> str:  # without it, OpenSSL asks on the terminal
        raise ConfigError([f"{where_key}: is encrypted; write the key without a passphrase into a file"])

    try:
        context.load_cert_chain(certificate, key, passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError([f"{where_key}: is not the private key of the certificate in {certificate}"]) from error
        found = "-----BEGIN CERTIFICATE-----" in _text(certificate)
        problem = f"{where_key}: contains no private key" if found else f"{where}: contains no certificate"
        raise ConfigError([f"{problem} in PEM form ({_reason(error)})"]) from error


def _readable(path: str, where: str) -> None:
    try:
        _text(path)
    except OSError as error:
        raise ConfigError([f"{where}: cannot be read: {error.strerror}"]) from error


def _text(path: str) -> str:
    with open(path, encoding="latin-1") as file:  # noqa: PTH123 - the bytes of a PEM file are ASCII
        return file.read()


# By OpenSSL's code for a certificate that it does not accept. The server's own words follow in parentheses.
_CERTIFICATE = {
    9: "is not valid yet; check the clock of this machine",
    10: "has expired; the server needs a new one",
    23: "was revoked; the server needs a new one",
    62: "is for another host; check endpoint.base_url",
    64: "is for another host; check endpoint.base_url",
    **dict.fromkeys(
        (2, 18, 19, 20, 21),
        "is not signed by a trusted authority; name the file with the authority's certificate in endpoint.tls.ca_file",
    ),
}
# By a part of OpenSSL's error; the first match applies.
_REFUSED = "refuses the client certificate: "
_REASONS = (
    ("CERTIFICATE_REVOKED", _REFUSED + "it was revoked; name a new one in endpoint.tls.client_cert"),
    ("CERTIFICATE_EXPIRED", _REFUSED + "it has expired; name a new one in endpoint.tls.client_cert"),
    ("ALERT_UNKNOWN_CA", _REFUSED + "it does not trust the issuer; name another one in endpoint.tls.client_cert"),
    ("CERTIFICATE_REQUIRED", "requires a client certificate; name one in endpoint.tls.client_cert"),
    ("CERTIFICATE", _REFUSED + "it is missing or not valid; check endpoint.tls.client_cert"),
    ("ALERT_ACCESS_DENIED", _REFUSED + "it has no access; check endpoint.tls.client_cert"),
    ("HANDSHAKE_FAILURE", "refuses the TLS connection; it may require a client certificate, endpoint.tls.client_cert"),
    ("WRONG_VERSION_NUMBER", "does not speak TLS; use http:// or another port in endpoint.base_url"),
    ("RECORD_LAYER_FAILURE", "does not speak TLS; use http:// or another port in endpoint.base_url"),
    ("PACKET_LENGTH_TOO_LONG", "does not speak TLS; use http:// or another port in endpoint.base_url"),
    ("UNRECOGNIZED_NAME", "has no certificate for this name; check endpoint.base_url"),
    ("PROTOCOL", "does not speak TLS 1.2 or newer, which deltatap requires"),
)


def explained(error: ssl.SSLError, server: str) -> TlsError:
    """What to tell the user about a failed TLS connection, and what to do about it.

    Args:
        error: OpenSSL's.
        server: host and port.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", "") or _reason(error)
        what = _CERTIFICATE.get(getattr(error, "verify_code", 0), "is not valid")
        return TlsError(f"the certificate of {server} {what} ({why})")
    what = next((text for part, text in _REASONS if part in (error.reason or "")), "breaks the TLS connection")
    return TlsError(f"{server} {what} ({_reason(error)})")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
