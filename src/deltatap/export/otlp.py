"""Sends spans to a server over OTLP/HTTP, through OpenTelemetry's exporter, which also retries.

Only this module uses the extra ``otel``. The exporter only logs why a server does not take the spans; this module
raises the reason as an error.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import requests
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from deltatap import __version__
from deltatap.errors import ExportError, one_line
from deltatap.export.target import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltatap.export.spans import Span

_OK, _REDIRECTION = 200, 300
_SAID = 200
_NO_SECRETS = ("accept", "connection", "content-", "user-agent")
_SCOPE = InstrumentationScope("deltatap", __version__)


class _Session(requests.Session):
    """Remembers the result of the last request. Follows no redirect, because the second request would have no body."""

    problem: str | None = None

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # noqa: ANN401 - as the base class
        """As the base class does."""
        try:
            response = super().send(request, **{**options, "allow_redirects": False})
        except requests.RequestException as error:
            self.problem = f"cannot be reached: {_cause(error)}"
            raise
        self.problem = self._problem(response)
        return response

    def _problem(self, response: requests.Response) -> str | None:
        if response.is_redirect:
            return f"redirects to {shown(response.headers['location'])}; use that URL"
        kind = response.headers.get("content-type", "")
        if _OK <= response.status_code < _REDIRECTION:
            return _refused(response.content) if "protobuf" in kind else None
        said = " ".join(response.text.split())[:_SAID] if "json" in kind or "text/plain" in kind else ""
        # A server can repeat a key that it does not accept.
        for name, value in response.request.headers.items():
            if not name.lower().startswith(_NO_SECRETS):
                said = said.replace(str(value), "***").replace(str(value).rpartition(" ")[2], "***")
        return f"answered {response.status_code} {response.reason}{': ' if said else ''}{said}"


class Exporter:
    """Sends batches of spans.

    OpenTelemetry's environment variables set compression, time limit and certificates, such as
    OTEL_EXPORTER_OTLP_TIMEOUT (10 s for a batch and its retries).
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        """Connect to nothing yet.

        Args:
            url: for traces.
            headers: in addition to those of OTEL_EXPORTER_OTLP_HEADERS.
        """
        self._url = url
        self._session = _Session()
        self._exporter = OTLPSpanExporter(url, headers=dict(headers), session=self._session)
        # The error that send() raises contains everything that it logs.
        logging.getLogger(OTLPSpanExporter.__module__).disabled = True
        own = Resource({"service.name": "deltatap", "service.version": __version__})
        self._resource = own.merge(OTELResourceDetector().detect())

    def send(self, spans: Sequence[Span]) -> None:
        """Send a batch.

        Raises:
            ExportError: the server does not take all of them.
        """
        self._session.problem = None
        readable = [self._readable(span) for span in spans]
        try:
            result = self._exporter.export(readable)
        except requests.RequestException:  # older exporters catch few of them
            result = SpanExportResult.FAILURE
        problem = self._session.problem
        if result is not SpanExportResult.SUCCESS and problem is None:
            problem = "the batch was not sent: it is larger than 64 MiB"
        if problem is not None:
            raise ExportError(f"--otlp: {shown(self._url)}: {problem}")

    def close(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _readable(self, span: Span) -> ReadableSpan:
        context = SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
        return ReadableSpan(
            name=span.name,
            context=context,
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(event.name, event.attributes, event.at_ns) for event in span.events],
            kind=SpanKind.CLIENT,
            status=Status() if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=_SCOPE,
        )


def _refused(body: bytes) -> str | None:
    """The server's message about spans that it has refused although its status is 200."""
    try:
        partial = ExportTraceServiceResponse.FromString(body).partial_success
    except DecodeError:  # the status counts
        return None
    if not partial.rejected_spans:
        return None
    return f"refused {partial.rejected_spans} spans: {partial.error_message or 'no reason given'}"


def _cause(error: BaseException) -> str:
    """The innermost reason: the outer messages contain the whole URL."""
    while error.__context__ is not None:
        error = error.__context__
    return one_line(error)
