"""Defines what each API must provide: a subclass of :class:`Api`, in its own module.

Every difference between APIs is a member of this class, so no other module compares the names of APIs. The defaults are
OpenAI's, which most servers follow. To add an API, write a module with a subclass and an instance named `API`, and add
a line to `registry.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from deltatap.api.frames import DONE, ParsedRequest, openai_error
from deltatap.api.values import count
from deltatap.model import OUTPUT_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltatap.api.accumulate import Accumulator
    from deltatap.api.framing import Frames
    from deltatap.api.input_tokens import InputTokens


class Api(ABC):
    """One API.

    Attributes:
        name: the value of `endpoint.api`.
        title: the name in messages.
        path: the path of the URL, after the base URL.
        models_path: where the endpoint lists its models.
        prompt_field: the body's field for the prompt.
        system: the body's field for the system prompt, if it is not a message.
        defaults: parameters that the API requires, used if neither the configuration nor the row sets them.
        max_output_names: the parameters that limit a choice's output; the first one that is set applies.
        takes_n: whether `n` asks for several choices.
        takes_stream_options: whether a stream reports usage only if `stream_options` asks for it.
        operation, provider, openai_type: what OpenTelemetry calls the API: `gen_ai.operation.name`,
            `gen_ai.provider.name` (if `endpoint.kind` is openai) and `openai.api.type`.
        per_deployment: whether Azure's older URLs have the path under a deployment.
        key_header, key_prefix: the header for the API key, and the text before the key.
        headers: other headers of every request.
        resume: the fields that ask the server to store the answer, so that a broken stream can be resumed. Empty if the
            API cannot do that.
        request_id_headers: the response headers that may hold the server's request id, best first.
        end_mark: the bytes that a server writes after the last event of a stream.
        says: the kinds of output that an answer can have.
        call_types: the types of tool calls that an answer can have, of those that every API can store.
        finish_reasons: the name in chat completions of each finish_reason, if it differs.
        accumulator: decodes the events of a stream, or a whole response.
        frames: builds the events of a stream, or a whole response, for the simulator and the replay.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    path: ClassVar[str]
    models_path: ClassVar[str] = "/models"
    prompt_field: ClassVar[str]
    system: ClassVar[str | None] = None
    defaults: ClassVar[Mapping[str, Any]] = {}
    max_output_names: ClassVar[tuple[str, ...]] = ()
    takes_n: ClassVar[bool] = False
    takes_stream_options: ClassVar[bool] = False
    operation: ClassVar[str] = "chat"
    provider: ClassVar[str] = "openai"
    openai_type: ClassVar[str | None] = None
    per_deployment: ClassVar[bool] = False
    key_header: ClassVar[str] = "Authorization"
    key_prefix: ClassVar[str] = "Bearer "
    headers: ClassVar[Mapping[str, str]] = {}
    resume: ClassVar[Mapping[str, Any]] = {}
    request_id_headers: ClassVar[tuple[str, ...]] = ("x-request-id", "apim-request-id")
    end_mark: ClassVar[bytes] = DONE
    says: ClassVar[frozenset[str]] = frozenset(OUTPUT_KINDS)
    call_types: ClassVar[frozenset[str]] = frozenset(("function", "custom"))
    finish_reasons: ClassVar[Mapping[str, str]] = {}
    accumulator: ClassVar[type[Accumulator]]
    frames: ClassVar[type[Frames]]

    @abstractmethod
    def prompt(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the body that come from a prompts row: the prompt and the system prompt.

        Raises:
            BadPromptError: if the row has no prompt that this API accepts.
        """

    @abstractmethod
    def count_input(self, body: Mapping[str, Any], model: str, encoding: str) -> InputTokens:
        """The number of input tokens of a request, as tiktoken counts them.

        Args:
            body: the request.
            model: selects the rules.
            encoding: the name of a tiktoken encoding.
        """

    def choices(self, body: Mapping[str, Any]) -> int:
        """The number of choices that a request asks for."""
        return max(1, count(body.get("n")) or 1) if self.takes_n else 1

    def generated(self, body: Mapping[str, Any]) -> int:
        """The number of choices that a request is billed for."""
        return self.choices(body)

    def max_output(self, body: Mapping[str, Any]) -> int | None:
        """The maximum number of tokens of one choice. None if the request sets no maximum."""
        return next((tokens for name in self.max_output_names if (tokens := count(body.get(name)))), None)

    def echo(self, body: Mapping[str, Any]) -> str | None:  # noqa: ARG002 - only legacy completions have it
        """The text that the request asks to repeat before the output of each choice."""
        return None

    def resume_problem(self, body: Mapping[str, Any], *, resume: bool) -> str | None:  # noqa: ARG002 - most APIs have none
        """Why a body cannot be sent, with or without ``capture.resume``. None if it can."""
        return None

    def read_on(self, path: str, response_id: str, after: int | None, *, whole: bool) -> tuple[str, dict[str, str]]:
        """The path and the query of the request that resumes an answer.

        Args:
            path: of the request that was sent.
            response_id: of the answer.
            after: the sequence number of the last event that arrived. None: read from the start.
            whole: read the whole answer instead of its stream.
        """
        query = {} if whole else {"stream": "true"}
        if after is not None and not whole:
            query["starting_after"] = str(after)
        return f"{path}/{quote(response_id, safe='')}", query

    def last_prompt(self, body: Mapping[str, Any]) -> object:
        """The last message's content, or the prompt itself; None if the body has no prompt."""
        prompt = body.get(self.prompt_field)
        if isinstance(prompt, list) and prompt:
            last = prompt[-1]
            return last.get("content") if isinstance(last, dict) else last
        return prompt

    def parse_request(self, body: Mapping[str, Any]) -> ParsedRequest:
        """Parse a request for the simulator.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: if the body is not a request of this API.
        """
        if not body[self.prompt_field]:
            raise ValueError("no prompt")
        options = body.get("stream_options")
        stop = body.get("stop")
        choice = body.get("tool_choice")
        tools = body.get("tools") if choice != "none" else None
        return ParsedRequest(
            choices=self.choices(body),
            max_output=self.max_output(body),
            tools=tuple(self.tool(tool) for tool in tools) if isinstance(tools, list) else (),
            several_calls=body.get("parallel_tool_calls") is not False,
            reasoning=body.get("reasoning_effort") not in (None, "none"),
            schema=json_schema(body.get("response_format")),
            stop=tuple(text for text in ([stop] if isinstance(stop, str) else stop or ()) if isinstance(text, str)),
            echo=self.echo(body),
            logprobs=bool(body.get("logprobs")),
            usage=not self.takes_stream_options or (isinstance(options, dict) and options.get("include_usage") is True),
        )

    def tool(self, tool: Any) -> tuple[str, Mapping[str, Any]]:  # noqa: ANN401 - any JSON
        """Name and JSON schema of a tool in a request."""
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        schema = function.get("parameters")
        return str(function.get("name")), schema if isinstance(schema, dict) else {}

    def error_body(self, status: int, kind: str, code: str | None, message: str) -> dict[str, Any]:  # noqa: ARG002
        """The body of a refusal with this HTTP status; `kind` and `code` are OpenAI's type and code."""
        return openai_error(kind, code, message)

    def refusal(self, status: int, code: str | None, message: str) -> dict[str, Any]:
        """The body of a captured refusal. A row has the code that the server sent, or else the type."""
        if code is not None and code.endswith("_error"):
            return openai_error(code, None, message)
        kind = "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004 - server errors
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status, kind)
        return openai_error(code if code == "insufficient_quota" else kind if code else None, code, message)

    def sent(self, call: Mapping[str, Any]) -> tuple[str, str]:
        """Name and arguments of a call that the server executed, from the call as it was sent.

        The chunks of a row contain the pieces of both.
        """
        return str(call.get("name") or ""), str(call.get("arguments") or "")


def json_schema(form: object) -> Mapping[str, Any] | None:
    """The JSON schema of the requested output format. None if plain text is requested."""
    if not isinstance(form, dict) or form.get("type") not in ("json_object", "json_schema"):
        return None
    holder = form.get("json_schema", form)
    schema = holder.get("schema") if isinstance(holder, dict) else None
    return schema if isinstance(schema, dict) else {"type": "object", "properties": {"answer": {"type": "string"}}}
