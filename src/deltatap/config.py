"""Typed settings: every key with its default and bounds, read from YAML, a dict and ``--set`` overrides.

Reports every problem of a configuration at once, each with the file and the path of the key. Other modules check
whether the tables, keys and endpoints that it names exist. No message contains a value under ``endpoint.api_key``,
``endpoint.headers`` or ``endpoint.proxy``, because people paste keys where the name of a variable is expected. For the
same reason JSON and a repr of settings contain neither the password of a proxy nor a credential in a header.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit, urlunsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_serializer
from pydantic_core import PydanticCustomError

from deltatap.api import registry
from deltatap.errors import ConfigError
from deltatap.prompts import OURS, stream_options_problem

if TYPE_CHECKING:
    from deltatap.model import Mode


def _absolute(location: str) -> str:
    """Make a path absolute, so that a table has one name. Catalog names and URIs stay as they are."""
    return str(Path(location).absolute()) if "/" in location and ":" not in location.split("/", 1)[0] else location


def _known_api(name: str) -> str:
    if name not in registry.NAMES:
        known = [repr(known) for known in registry.NAMES]
        raise PydanticCustomError("literal_error", f"{', '.join(known[:-1])} or {known[-1]}")
    return name


Location = Annotated[str, Field(min_length=1, pattern=r"^[^`]+$"), AfterValidator(_absolute)]
PositiveInt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, le=1)]
File = Annotated[str, Field(min_length=1), AfterValidator(lambda path: str(Path(path).absolute()))]
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, validate_default=True
    )


class Prompts(_Section):
    """Where the prompts come from, a table (name or path) or a query, and which columns to copy to captures."""

    table: Location | None = "data/prompts"
    sql: str | None = None
    keep: list[str] = []

    @property
    def source(self) -> str:
        """The source, for messages."""
        return self.table if self.table is not None else f"query {self.sql!r}"


class Captures(_Section):
    """The table of captured answers: a catalog name, or a path if it contains a ``/``."""

    table: Location = "data/captures"


class Runs(_Section):
    """The runs table: a catalog name, or a path if it contains a ``/``."""

    table: Location = "data/runs"


class Run(_Section):
    """The identity of this run. The id of an earlier run resumes that run."""

    id: RunId | None = None
    labels: dict[str, str] = {}


class Source(_Section):
    """Where a value is that the configuration must not contain. Workers read it themselves, except for a secret.

    Attributes:
        env: the name of the environment variable that holds the value.
        secret: ``scope/key`` of a Databricks secret, for notebooks. Only the driver can read secrets, so it passes the
            value to the workers in the UDF's closure.
    """

    env: Annotated[str, Field(min_length=1)] | None = None
    secret: Annotated[str, Field(pattern="^[^/]+/.+$")] | None = None


class ApiKey(Source):
    """Where the API key comes from.

    Attributes:
        identity: instead of a key, use tokens of the process' own identity and renew them before they expire. ``azure``
            uses azure-identity (Entra ID), ``databricks`` the unified authentication of the Databricks SDK.
    """

    identity: Literal["azure", "databricks"] | None = None


class Tls(_Section):
    """The certificates of a TLS connection, as paths of PEM files.

    Attributes:
        ca_file: certificate authorities to trust in addition to those of the system.
        client_cert: the certificate, with its chain, that identifies deltatap to the server.
        client_key: the private key of `client_cert`, without a passphrase. None: the key is in the same file.
    """

    ca_file: File | None = None
    client_cert: File | None = None
    client_key: File | None = None


class Endpoint(_Section):
    """The server to call, and the way to it.

    Attributes:
        headers: sent with every call. The text ``{run_id}`` stands for the id of the run.
        proxy: the URL of an HTTP proxy; ``env`` reads HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.
        tls: which certificates to trust and to show.
    """

    name: str | None = None
    kind: Literal["openai", "azure", "databricks"] = "openai"
    api: Annotated[str, AfterValidator(_known_api)] = "chat"
    base_url: str = "http://127.0.0.1:8089/v1"
    model: str | None = "gpt-4o-mini"
    api_version: str | None = None
    api_key: ApiKey | None = ApiKey(env="OPENAI_API_KEY")
    headers: dict[str, str | Source] = Field(default={}, repr=False)
    proxy: str | Source | None = Field(default=None, repr=False)
    tls: Tls = Field(default_factory=Tls)
    include_usage: bool = True

    @property
    def azure_v1(self) -> bool:
        """Whether the base URL is Azure's v1 API, which differs from OpenAI's only in the header for the key."""
        return self.base_url.rstrip("/").endswith("/openai/v1")

    @property
    def key_header(self) -> tuple[str, str]:
        """The header that carries the key or token, and the text before it."""
        if self.kind == "databricks" or (self.api_key is not None and self.api_key.identity):
            return "Authorization", "Bearer "
        if self.kind == "azure":
            return "api-key", ""
        api = registry.specification(self.api)
        return api.key_header, api.key_prefix

    @property
    def label(self) -> str:
        """The endpoint's name in the tables: ``name``, or the base URL if there is none."""
        return self.name or self.base_url

    @field_serializer("headers", when_used="json")
    def _headers_without_credentials(self, headers: dict[str, str | Source]) -> dict[str, Any]:
        return {
            name: value.model_dump() if isinstance(value, Source) else "***" if holds_credential(name) else value
            for name, value in headers.items()
        }

    @field_serializer("proxy", when_used="json")
    def _proxy_without_password(self, proxy: str | Source | None) -> object:
        return re.sub(r"//.*@", "//***@", proxy) if isinstance(proxy, str) else proxy and proxy.model_dump()


def holds_credential(header: str) -> bool:
    """Whether a header of this name usually holds a credential: its value is kept out of tables and messages."""
    return bool(re.search(r"auth(orization)?$|key$|token|secret|password|credential|cookie", header, re.IGNORECASE))


class Capture(_Section):
    """How requests are captured: the concurrency, and how often a request is retried."""

    mode: Literal["stream", "complete", "paired"] = "stream"
    owed: Literal["new", "all"] = "new"
    concurrency: PositiveInt = 64
    streams_per_worker: PositiveInt = 256
    limit: PositiveInt | None = None
    max_attempts: PositiveInt = 5
    max_broken: PositiveInt = 2
    max_runs: PositiveInt = 3
    retry_for_s: Annotated[float, Field(ge=0)] = 600
    keep_interrupted: bool = False
    keep_raw: bool = False
    fail_above_error_rate: Rate = 0.5

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes in which each prompt is captured."""
        return ("stream", "complete") if self.mode == "paired" else (self.mode,)


class Timeouts(_Section):
    """Timeouts in seconds: connect, first byte of the response, gap between bytes, whole call, draining."""

    connect_s: Seconds = 10
    first_byte_s: Seconds = 120
    idle_s: Seconds = 60
    total_s: Seconds = 900
    grace_s: Annotated[float, Field(ge=0)] = 30


class Limits(_Section):
    """What the whole run can start in any 60 seconds."""

    requests_per_minute: Annotated[float, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None


class Budget(_Section):
    """What the whole run can use. When a budget is used up, the run drains and ends as budget_exhausted."""

    cost_usd: Annotated[float, Field(gt=0)] | None = None
    tokens: PositiveInt | None = None
    requests: PositiveInt | None = None
    runtime_s: Seconds | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits and budgets of a run; None where there is none.

    Attributes:
        requests_per_minute, tokens_per_minute: within any sixty seconds.
        requests, tokens, cost_usd: in total, including the expected use of open calls.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    requests: int | None = None
    tokens: int | None = None
    cost_usd: float | None = None

    @property
    def any(self) -> bool:
        """Whether the run has a limit or a budget."""
        return any(getattr(self, name) is not None for name in self.__slots__)


class Tokens(_Section):
    """The encoding for models that tiktoken does not know."""

    fallback_encoding: Literal["o200k_base", "cl100k_base", "o200k_harmony"] = "o200k_base"


class State(_Section):
    """The folder of journal, plan and control files, and the interval in seconds at which workers flush the journal."""

    dir: File = "data/state"
    flush_s: Seconds = 1


class Slo(_Section):
    """Limits in ms that a completed answer must meet to count as good. None: no limit."""

    ttft_ms: Annotated[float, Field(gt=0)] | None = None
    tpot_ms: Annotated[float, Field(gt=0)] | None = None
    e2e_ms: Annotated[float, Field(gt=0)] | None = None


class Analysis(_Section):
    """Where the metrics tables are, and which rows count.

    Attributes:
        tables: a schema (``catalog.schema``) or a folder. None: next to captures.
        max_loop_lag_ms: leave rows out of the latencies if deltatap's event loop ran later than this. None: keep all.
        slo: the limits that a good answer meets.
    """

    tables: Location | None = None
    max_loop_lag_ms: Annotated[float, Field(gt=0)] | None = 50
    slo: Slo = Field(default_factory=Slo)


class Spark(_Section):
    """The master of a local session. Not used if a session already exists, as on Databricks."""

    master: str = "local[*]"


class Settings(_Section):
    """The whole configuration. ``conf/local.yml`` explains every key."""

    prompts: Prompts = Field(default_factory=Prompts)
    captures: Captures = Field(default_factory=Captures)
    runs: Runs = Field(default_factory=Runs)
    run: Run = Field(default_factory=Run)
    endpoint: Endpoint = Field(default_factory=Endpoint)
    request: dict[str, Any] = {"temperature": 0}
    capture: Capture = Field(default_factory=Capture)
    timeouts: Timeouts = Field(default_factory=Timeouts)
    limits: Limits = Field(default_factory=Limits)
    budget: Budget = Field(default_factory=Budget)
    tokens: Tokens = Field(default_factory=Tokens)
    prices: str | list[str] | None = "conf/prices.yml"
    state: State = Field(default_factory=State)
    analysis: Analysis = Field(default_factory=Analysis)
    spark: Spark = Field(default_factory=Spark)

    @property
    def bounds(self) -> Bounds:
        """The limits and budgets of the run."""
        limits, budget = self.limits, self.budget
        return Bounds(
            limits.requests_per_minute, limits.tokens_per_minute, budget.requests, budget.tokens, budget.cost_usd
        )


# Replaces pydantic's wording with words that fit after "expected".
_WORDING = {
    "Input should be ": "",
    "a valid integer": "an integer",
    "a valid ": "a ",
    "greater than": "a number greater than",
    "less than": "a number less than",
    "String should match pattern": "text that matches",
    "String should have": "text with",
}


def load_settings(
    source: Settings | Mapping[str, Any] | str | Path,
    overrides: Iterable[str] = (),
) -> Settings:
    """Load settings from a YAML file, a dict or other settings, with overrides.

    Args:
        source: the path of a YAML file, its content as a dict, or settings.
        overrides: ``a.b=c``. An empty ``c`` sets the key to null if it can be null, else to its default.

    Raises:
        ConfigError: lists every problem, as ``file: key.path: what was expected``.
    """
    if isinstance(source, Settings):
        name, tree = "settings", source.model_dump(exclude_unset=True)
    elif isinstance(source, Mapping):
        name, tree = "settings", _copied(source)
    else:
        name, tree = str(source), _read(Path(source))
    problems = [problem for text in overrides if (problem := _override(tree, text))]
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        # A value with several possible types has one error for each of them.
        described = dict.fromkeys(_described(e) for e in error.errors(include_url=False))
        problems += [f"{name}: {text}" for text in described]
    else:
        problems += [f"{name}: {problem}" for problem in _conflicts(settings)]
        if not problems:
            return settings
    # `from None`, because pydantic's error contains the input, which can contain an API key.
    raise ConfigError(problems) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path} does not exist; pass another file with --config"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8 text (byte {error.start})"]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise ConfigError([f"{path}{where}: is not valid YAML: {problem}"]) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError([f"{path}: expected a mapping of sections, found {type(tree).__name__}"])
    return tree


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _override(tree: dict[str, Any], text: str) -> str | None:
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return f"--set {path}: expected a.b=c"
    node = tree
    for key in keys[:-1]:
        child = node.get(key)
        if not isinstance(child, dict):
            child = node[key] = {}
        node = child
    kinds = _kinds(keys)
    if value:
        try:
            listed = value.startswith("[") and any(get_origin(kind) is list for kind in kinds)
            sourced = Source in kinds and re.match(r"\{ *(env|secret) *:", value)
            node[keys[-1]] = value if str in kinds and not listed and not sourced else yaml.safe_load(value)
        except yaml.YAMLError:
            return f"--set {path}: the value is not valid YAML"
    elif type(None) in kinds or not kinds:
        node[keys[-1]] = None
    else:
        node.pop(keys[-1], None)
    return None


def _kinds(keys: list[str]) -> set[Any]:
    """The types that the key at this path can have. Empty for an unknown key."""
    kinds: set[Any] = {Settings}
    for key in keys:
        annotations = []
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel) and key in kind.model_fields:
                annotations.append(kind.model_fields[key].annotation)
            elif get_origin(kind) is dict:
                annotations.append(get_args(kind)[1])
        kinds = {kind for annotation in annotations for kind in _alternatives(annotation)}
    return kinds


def _alternatives(annotation: Any) -> list[Any]:  # noqa: ANN401 - type expressions have no common type
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    if origin is Literal:
        return [type(value) for value in get_args(annotation)]
    return [annotation]


def _described(error: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    path = [str(part) for part in error["loc"]]
    where = ".".join(path) or "settings"
    if error["type"] == "extra_forbidden" and path[:2] not in (["endpoint", "headers"], ["endpoint", "proxy"]):
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    message = error["msg"]
    for theirs, ours in _WORDING.items():
        message = message.replace(theirs, ours)
    if "api_key" in path:
        return (
            f"{where}: expected {{env: NAME}}, the name of an environment variable that holds the key, "
            "{secret: scope/key}, {identity: azure} or {identity: databricks}, or null"
        )
    if path[:2] == ["endpoint", "headers"]:
        return f"{'.'.join(path[:3])}: expected text, {{env: NAME}} or {{secret: scope/key}}"
    if path[:2] == ["endpoint", "proxy"]:
        return f"endpoint.proxy: expected {_A_PROXY}, {{env: NAME}}, {{secret: scope/key}} or null"
    value = error.get("input")
    found = f", found {value!r}" if isinstance(value, str | int | float | bool) or value is None else ""
    return f"{where}: expected {message}{found}"


def _known_keys(path: list[str]) -> list[str]:
    return sorted(
        key
        for kind in (_kinds(path) if path else {Settings})
        if isinstance(kind, type) and issubclass(kind, BaseModel)
        for key in kind.model_fields
    )


def _conflicts(settings: Settings) -> list[str]:
    """Problems between keys that are valid on their own."""
    problems = []
    if (settings.prompts.table is None) == (settings.prompts.sql is None):
        problems.append("prompts: expected exactly one of table and sql (to unset table: `table: null`)")
    ours = sorted(
        {*OURS, registry.specification(settings.endpoint.api).prompt_field, "model"} & settings.request.keys()
    )
    problems += [f"request.{key}: must not be set: deltatap sets it" for key in ours]
    if (problem := stream_options_problem(settings.request)) is not None:
        problems.append(f"request.{problem}")
    problems += _url_problems(settings.endpoint)
    problems += _endpoint_conflicts(settings.endpoint)
    problems += _network_conflicts(settings.endpoint)
    if settings.captures.table == settings.runs.table:
        problems.append("captures.table and runs.table: expected two different tables")
    if settings.prompts.table in (settings.captures.table, settings.runs.table):
        problems.append("prompts.table: must differ from captures.table and runs.table")
    if settings.timeouts.total_s < max(settings.timeouts.first_byte_s, settings.timeouts.idle_s):
        problems.append("timeouts.total_s: expected at least first_byte_s and idle_s")
    return problems


_A_PROXY = "http://host:port, http://user:password@host:port or env"


def _url_problems(endpoint: Endpoint) -> list[str]:
    where, base_url = "endpoint.base_url", endpoint.base_url
    try:
        url = urlsplit(base_url)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # an invalid port or IPv6 address
        return [f"{where}: expected an http:// or https:// URL"]
    if not valid or not base_url.isascii() or not base_url.isprintable() or " " in base_url:
        return [f"{where}: expected an http:// or https:// URL without spaces"]
    problems = []
    if "@" in url.netloc:
        problems.append(f"{where}: must not contain a user name or password; use endpoint.api_key")
    if "?" in base_url or "#" in base_url:
        how = "endpoint.api_version for api-version, endpoint.headers or request for anything else"
        problems.append(f"{where}: must not contain a query (?) or a fragment (#); use {how}")
    path = url.path.rstrip("/")
    paths = sorted({registry.specification(name).path for name in registry.NAMES}, key=len, reverse=True)
    base = next((path.removesuffix(end) for end in paths if path.endswith(end)), path)
    if endpoint.kind == "azure":
        base, _, deployment = base.partition("/openai/deployments/")
        if deployment:
            problems.append(f"{where}: must end before /openai/deployments; the deployment's name is endpoint.model")
    if base != path:
        better = urlunsplit((url.scheme, url.netloc.rpartition("@")[2], base, "", ""))
        problems.append(f"{where}: must not contain the path of the API, which deltatap appends; write {better}")
    return problems


def _network_conflicts(endpoint: Endpoint) -> list[str]:
    """Problems of the headers, the proxy and the certificates."""
    problems = []
    if isinstance(endpoint.proxy, Source) and not _names_one(endpoint.proxy):
        problems.append("endpoint.proxy: expected exactly one of env and secret")
    elif isinstance(endpoint.proxy, str) and endpoint.proxy != "env" and (bad := proxy_problem(endpoint.proxy)):
        problems.append(f"endpoint.proxy: {bad}")
    if endpoint.tls.client_key is not None and endpoint.tls.client_cert is None:
        problems.append("endpoint.tls.client_cert: is missing; client_key is its key")
    seen: set[str] = set()
    for name, value in endpoint.headers.items():
        if (bad := _header_problem(endpoint, name, value)) is not None:
            problems.append(f"endpoint.headers.{name}: {bad}" if _TOKEN.fullmatch(name) else f"endpoint.headers: {bad}")
        elif name.lower() in seen:
            problems.append(f"endpoint.headers.{name}: is set twice; upper and lower case make no difference")
        seen.add(name.lower())
    return problems


# RFC 9110, section 5.6.2
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Each of them would break the request or its answer.
_RESERVED = re.compile(
    "accept-encoding|connection|content-(encoding|length|type)|expect|host|keep-alive|te|trailer|transfer-encoding|upgrade",
    re.IGNORECASE,
)


def _header_problem(endpoint: Endpoint, name: str, value: str | Source) -> str | None:
    """Why a header cannot be sent; None if it can."""
    if not _TOKEN.fullmatch(name):
        return "a name contains a character that the name of a header cannot have"
    if _RESERVED.fullmatch(name):
        return "must not be set: deltatap sets it"
    if name.lower().startswith("proxy-"):
        return "must not be set: write the proxy's user name and password into endpoint.proxy"
    key_header, _ = endpoint.key_header
    if endpoint.api_key is not None and name.lower() == key_header.lower():
        return "endpoint.api_key sets this header; to send your own value, set endpoint.api_key to null"
    if isinstance(value, Source):
        return None if _names_one(value) else "expected exactly one of env and secret"
    return None if sendable(value) else "a header can hold only printable ASCII characters, and no line breaks"


def sendable(value: str) -> bool:
    """Whether a header can hold this value."""
    return value.isascii() and value.isprintable()


def proxy_problem(url: str) -> str | None:
    """What is wrong with the URL of a proxy; None if nothing is. The text does not contain the URL."""
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and parts.port != 0 and url.isascii() and url.isprintable() and " " not in url
    except ValueError:
        return f"expected {_A_PROXY}"
    if parts.scheme in ("https", "socks", "socks4", "socks4a", "socks5", "socks5h"):
        return f"deltatap does not support {parts.scheme}:// proxies, only http:// ones (https:// endpoints included)"
    if parts.scheme != "http" or not valid or parts.path not in ("", "/") or parts.query or parts.fragment:
        return f"expected {_A_PROXY}"
    return None


def _names_one(source: Source) -> bool:
    return len(source.model_dump(exclude_none=True)) == 1


def _endpoint_conflicts(endpoint: Endpoint) -> list[str]:
    problems = []
    key = endpoint.api_key
    if key is not None and not _names_one(key):
        problems.append("endpoint.api_key: expected exactly one of env, secret and identity")
    if endpoint.api_version is not None and endpoint.kind != "azure":
        problems.append("endpoint.api_version: is only valid for kind azure")
    if endpoint.kind == "azure" and endpoint.api_version is None and not endpoint.azure_v1:
        problems.append(
            "endpoint.api_version: is missing; set one, such as 2024-10-21, or use a base_url that ends with /openai/v1"
        )
    return problems
