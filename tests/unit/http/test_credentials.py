"""Keys and renewed tokens: in virtual time, and with the real libraries against servers on loopback."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from deltatap import config
from deltatap.config import Timeouts
from deltatap.endpoint import ApiKey, Endpoint, Source
from deltatap.errors import ConfigError, CredentialError
from deltatap.http.client import EndpointClient
from deltatap.http.credentials import Credential, Secrets, Token, credential_of, read_secrets
from deltatap.model import Capture, Job, Request, Wire
from deltatap.worker.engine import Engine
from tests.notebook import with_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WIRE = Wire('{"model":"m","messages":[],"stream":true}', "m", "stream", 1)
ANSWER = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
MINUTE = 60.0


class Clock:
    """Virtual time, in seconds."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Issuer:
    """Issues tokens with a lifetime, and knows which are valid."""

    def __init__(self, clock: Clock, lifetime_s: float) -> None:
        self.clock, self.lifetime_s = clock, lifetime_s
        self.issued: dict[str, float] = {}
        self.down = False

    def __call__(self) -> Token:
        if self.down:
            raise ConnectionError("the identity provider is down")
        value = f"a-token-{len(self.issued)}"
        self.issued[value] = self.clock.now + self.lifetime_s
        return Token(value, self.issued[value])

    def valid(self, value: str) -> bool:
        return self.clock.now < self.issued.get(value, 0)


@contextmanager
def endpoint(answer: Callable[[str, dict[str, str], bytes], tuple[int, str, bytes]]) -> Iterator[str]:
    """A real HTTP server. `answer` takes path, headers and body, and returns status, content type and body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, kind, content = answer(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815 - the base class requires this name

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def guarded(issuer: Issuer) -> Callable[[str, dict[str, str], bytes], tuple[int, str, bytes]]:
    def answer(_path: str, headers: dict[str, str], _body: bytes) -> tuple[int, str, bytes]:
        value = headers.get("authorization", "").removeprefix("Bearer ")
        if issuer.valid(value):
            return 200, "text/event-stream", ANSWER
        refused = {"error": {"code": "invalid_token", "message": f"The token {value} has expired."}}
        return 401, "application/json", json.dumps(refused).encode()

    return answer


@contextmanager
def engine_of(
    credential: Credential, issuer: Issuer, captures: list[Capture], *, look_ahead: int, share: int
) -> Iterator[Engine]:
    """An engine that calls an endpoint which accepts the issuer's tokens only."""
    with endpoint(guarded(issuer)) as url:
        described = Endpoint(base_url=f"{url}/v1", api_key=ApiKey(identity="databricks"))
        with Engine(
            lambda: EndpointClient(described, Timeouts(), credential=credential),
            limits=config.Capture(max_attempts=1), look_ahead=look_ahead, deliver=captures.append, share=share,
        ) as engine:  # fmt: skip
            yield engine


def test_no_request_fails_in_an_hour_with_ten_minute_tokens() -> None:
    """Send a request every ten seconds for an hour of virtual time, with the engine and over real sockets."""
    clock = Clock()
    issuer = Issuer(clock, 10 * MINUTE)
    captures: list[Capture] = []
    with engine_of(Credential(issuer, clock), issuer, captures, look_ahead=2, share=1) as engine:
        for number in range(360):
            assert engine.submit(Job(Request(str(number), "", None, "{}", None, None), WIRE, "stream", number, [], 0.0))
            engine.join()
            clock.now += 10.0
    assert len(captures) == 360
    assert all(call.status == "completed" for capture in captures for call in capture.job.calls)
    assert sum(len(capture.job.calls) for capture in captures) == 360, (
        "tokens are renewed before they expire, so no request is refused"
    )
    assert 6 <= len(issuer.issued) <= 8


def test_refused_token_is_renewed_once_and_the_requests_are_resent() -> None:
    clock = Clock()
    issuer = Issuer(clock, 60 * MINUTE)
    captures: list[Capture] = []
    credential = Credential(issuer, clock)
    with engine_of(credential, issuer, captures, look_ahead=40, share=8) as engine:
        credential.token()
        issuer.issued["a-token-0"] = 0  # revoked
        for number in range(20):
            engine.submit(Job(Request(str(number), "", None, "{}", None, None), WIRE, "stream", number, [], 0.0))
        engine.join()
        assert engine.fatal is None
    assert [capture.job.calls[-1].status for capture in captures] == ["completed"] * 20
    assert list(issuer.issued) == ["a-token-0", "a-token-1"], "one renewal for all refused requests"
    refused = [call for capture in captures for call in capture.job.calls[:-1]]
    assert refused
    for call in refused:
        assert call.error is not None
        assert (call.error.type, call.error.message) == ("authentication", "The token *** has expired.")


def test_identity_that_is_always_refused_stops_the_run() -> None:
    clock = Clock()
    issuer = Issuer(clock, 0.5)  # every renewal issues another token
    captures: list[Capture] = []

    def refuse(*_: Any) -> tuple[int, str, bytes]:
        return 401, "application/json", b'{"error_code": "UNAUTHENTICATED", "message": "No."}'

    with endpoint(refuse) as url:
        described = Endpoint(base_url=f"{url}/v1", api_key=ApiKey(identity="databricks"))
        with Engine(
            lambda: EndpointClient(described, Timeouts(), credential=Credential(issuer, clock)),
            limits=config.Capture(), look_ahead=2, deliver=captures.append, share=1,
        ) as engine:  # fmt: skip
            engine.submit(Job(Request("a", "", None, "{}", None, None), WIRE, "stream", 0, [], 0.0))
            engine.join()
            assert engine.fatal is not None
            assert engine.fatal.type == "authentication"
    assert len(captures[0].job.calls) == 3


def test_token_is_renewed_when_a_fifth_of_its_lifetime_is_left() -> None:
    clock = Clock()
    issuer = Issuer(clock, 10 * MINUTE)
    credential = Credential(issuer, clock)
    assert credential.current is None
    assert credential.token() == credential.current == "a-token-0"
    clock.now += 7.9 * MINUTE
    assert credential.token() == "a-token-0"
    clock.now += 0.2 * MINUTE
    assert credential.current is None
    assert credential.token() == "a-token-1"
    issuer.lifetime_s = 60 * MINUTE
    clock.now += 9 * MINUTE
    assert credential.token() == "a-token-2"
    clock.now += 54 * MINUTE
    assert credential.token() == "a-token-2", "a long-lived token is renewed five minutes before it expires"


def test_old_token_is_used_until_it_expires_while_renewal_fails() -> None:
    clock = Clock()
    issuer = Issuer(clock, 10 * MINUTE)
    credential = Credential(issuer, clock)
    credential.token()
    issuer.down = True
    clock.now += 9 * MINUTE
    assert credential.token() == "a-token-0"
    clock.now += 2 * MINUTE
    with pytest.raises(CredentialError, match=r"^cannot get a token: ConnectionError: the identity provider is down$"):
        credential.token()
    issuer.down = False
    assert credential.token() == "a-token-1"


def test_token_that_two_calls_report_as_refused_is_renewed_once() -> None:
    issuer = Issuer(Clock(), 10 * MINUTE)
    credential = Credential(issuer, issuer.clock)
    old = credential.token()
    assert credential.refused(old)
    assert credential.refused(old)
    assert list(issuer.issued) == ["a-token-0", "a-token-1"]


def test_missing_token_is_a_connection_error() -> None:
    clock = Clock()
    issuer = Issuer(clock, 10 * MINUTE)
    issuer.down = True

    async def made() -> Any:
        client = EndpointClient(Endpoint(), Timeouts(), credential=Credential(issuer, clock))
        try:
            return await asyncio.create_task(client.call(WIRE))
        finally:
            await client.close()

    call = asyncio.run(made())
    assert (call.status, call.error.type, call.error.code) == ("failed", "connection", "credential")
    assert call.dispatch_ms is None


def test_tokens_are_known_as_secrets() -> None:
    credential = Credential(lambda: Token("sk-4711"))
    assert credential.known == frozenset()
    credential.token()
    assert credential.known == {"sk-4711"}
    assert "sk-4711" not in repr(Token("sk-4711"))


def test_repeated_token_does_not_displace_earlier_ones() -> None:
    clock = Clock()
    given = iter(["old", *["new"] * 9])
    credential = Credential(lambda: Token(next(given), clock.now + 30), clock)
    for _ in range(10):
        credential.token()
        clock.now += 30
    assert credential.known == {"old", "new"}


# The real libraries.


def test_databricks_sdk_provides_the_workspaces_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """OAuth of a service principal, as a job uses it, with the endpoint's own workspace."""
    forms: list[dict[str, Any]] = []

    def workspace(path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        host = f"http://{headers['host']}"
        if path == "/.well-known/databricks-config":
            return 200, "application/json", json.dumps({"oidc_endpoint": f"{host}/oidc"}).encode()
        if path == "/oidc/.well-known/oauth-authorization-server":
            known = {"authorization_endpoint": f"{host}/oidc/v1/authorize", "token_endpoint": f"{host}/oidc/v1/token"}
            return 200, "application/json", json.dumps(known).encode()
        if path == "/oidc/v1/token":
            forms.append(parse_qs(body.decode()))
            token = {"access_token": f"dapi-{len(forms)}", "token_type": "Bearer", "expires_in": 3600}
            return 200, "application/json", json.dumps(token).encode()
        return 404, "application/json", b"{}"

    for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN", "DATABRICKS_CONFIG_FILE", "DATABRICKS_CONFIG_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABRICKS_CLIENT_ID", "principal")
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", "secret-4711")
    with endpoint(workspace) as url:
        described = Endpoint(
            kind="databricks", base_url=f"{url}/serving-endpoints", api_key=ApiKey(identity="databricks")
        )
        credential = credential_of(described)
        assert credential is not None
        assert credential.token() == "dapi-1"
        assert credential.token() == "dapi-1"
    assert forms[0]["grant_type"] == ["client_credentials"]


def test_azure_identity_provides_entra_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A managed identity, as Azure App Service provides it on loopback."""
    paths: list[str] = []

    def service(path: str, headers: dict[str, str], _body: bytes) -> tuple[int, str, bytes]:
        assert headers["x-identity-header"] == "proof"
        paths.append(path)
        token = {"access_token": "entra-1", "expires_on": "4102444800", "resource": "r", "token_type": "Bearer"}
        return 200, "application/json", json.dumps(token).encode()

    with endpoint(service) as url:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "proof")
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
        credential = credential_of(Endpoint(api_key=ApiKey(identity="azure")))
        assert credential is not None
        assert credential.token() == "entra-1"
    query = parse_qs(urlsplit(paths[0]).query)
    assert query["resource"] == ["https://cognitiveservices.azure.com"]


@pytest.mark.parametrize(("identity", "module"), [("azure", "azure.identity"), ("databricks", "databricks.sdk.core")])
def test_missing_extra_is_reported_with_its_name(monkeypatch: pytest.MonkeyPatch, identity: Any, module: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(
        ConfigError,
        match=rf"identity: the extra {identity} is not installed .*: run `pip install 'deltatap\[{identity}\]'`",
    ):
        credential_of(Endpoint(api_key=ApiKey(identity=identity)))


def test_key_from_a_secret_scope_is_read_on_the_driver_for_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def scoped(secret: str) -> Endpoint:
        return Endpoint(api_key=ApiKey(secret=secret))

    with_secrets(monkeypatch, {"team/open/ai": " s3cret\n", "team/empty": " "})
    secrets = read_secrets(scoped("team/open/ai"))
    assert secrets == Secrets({"team/open/ai": "s3cret"})
    assert "s3cret" not in repr(secrets)
    with pytest.raises(ConfigError, match=r"^endpoint.api_key.secret: team/empty: is empty$"):
        read_secrets(scoped("team/empty"))
    with pytest.raises(ConfigError, match=r"team/gone: RuntimeError: Secret does not exist .* team and key: gone$"):
        read_secrets(scoped("team/gone"))
    assert read_secrets(Endpoint(api_key=ApiKey(env="KEY"))) == Secrets()
    source = Source(secret="team/open/ai")  # noqa: S106 - its name
    assert read_secrets(Endpoint(api_key=None, headers={"X-A": source, "X-B": "text"})).values == secrets.values
    assert read_secrets(Endpoint(api_key=None, proxy=source)).values == secrets.values
    with pytest.raises(
        ConfigError, match=r"^endpoint.headers.X-A.secret: team/gone: RuntimeError: Secret does not exist"
    ):
        read_secrets(Endpoint(api_key=None, headers={"X-A": Source(secret="team/gone")}))  # noqa: S106 - the same
    assert read_secrets(Endpoint(api_key=None)) == Secrets()

    with_secrets(monkeypatch, {})  # as in a worker
    credential = credential_of(scoped("team/open/ai"), secrets)
    assert credential is not None
    assert credential.token() == "s3cret"
    assert credential.known == {"s3cret"}
