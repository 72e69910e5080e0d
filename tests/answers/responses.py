"""The Responses API."""

from __future__ import annotations

from typing import Any

from tests.answers.case import ANY, TWICE, WHOLE, Case, broken, chunked, failed, good, sized, typed

_ARGS = '{"city":"Paris"}'
_PARIS = (("call_1", "get_weather", _ARGS),)


def _item(arguments: str = _ARGS, status: str = "completed") -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "get_weather",
        "arguments": arguments,
        "status": status,
    }


def _message(text: str = "Hello world") -> dict[str, Any]:
    return {"type": "message", "id": "m1", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []}]}  # fmt: skip


def ended(*output: dict[str, Any], status: str = "completed", kind: str = "", **more: Any) -> bytes:
    response = {"id": "resp_1", "object": "response", "model": "m-1", "status": status, "output": list(output),
                "usage": {"input_tokens": 9, "output_tokens": 20, "total_tokens": 29}, **more}  # fmt: skip
    return typed(kind or f"response.{status}", response=response)


CREATED = typed(
    "response.created",
    response={"id": "resp_1", "object": "response", "model": "m-1", "status": "in_progress", "output": []},
)
_ADDED = typed("response.output_item.added", output_index=0, item=_item("", "in_progress"))
_ITEM_DONE = typed("response.output_item.done", output_index=0, item=_item())
TEXT = typed("response.output_text.delta", output_index=0, content_index=0, item_id="m1", delta="Hello world")
_ODD = {
    "type": "function_call",
    "id": "fc_1",
    "name": "f",
    "arguments": "{}",
    "function": {"name": "f", "arguments": {"a": 1}},
}


def _response(name: str, *events: bytes, **more: Any) -> Case:
    return good(
        name,
        chunked(CREATED, *events),
        **{"api": "responses", "usage": {"input_tokens": 9, "output_tokens": 20}, **more},
    )


RESPONSES = [
    _response("r: arguments only in arguments.done", _ADDED,
              typed("response.function_call_arguments.done", output_index=0, item_id="fc_1", arguments=_ARGS), _ITEM_DONE, ended(_item()),
              tools=_PARIS, text=ANY),
    _response("r: arguments only in item.done", _ADDED, _ITEM_DONE, ended(_item()), tools=_PARIS, text=ANY),
    _response("r: a call only in item.done", _ITEM_DONE, ended(_item()), tools=_PARIS, text=ANY),
    _response("r: a call only in the response", ended(_item()), tools=_PARIS, text=ANY),
    _response("r: a call only in item.added and the response", _ADDED, ended(_item()), tools=_PARIS, text=ANY),
    _response("r: a call in deltas", _ADDED, *(typed("response.function_call_arguments.delta", output_index=0, item_id="fc_1", delta=part) for part in (_ARGS[:5], _ARGS[5:])),
              typed("response.function_call_arguments.done", output_index=0, item_id="fc_1", arguments=_ARGS), _ITEM_DONE, ended(_item()),
              tools=_PARIS, text=ANY),
    _response("r: a call in item.added, complete", typed("response.output_item.added", output_index=0, item=_item()), ended(_item()), tools=_PARIS, text=ANY),
    _response("r: a call, then text only in text.done", _ADDED, typed("response.function_call_arguments.delta", output_index=0, delta=_ARGS),
              typed("response.output_text.done", output_index=1, text="Hello world"), ended(_item(), _message()), tools=_PARIS),
    _response("r: reasoning in a delta, text only in text.done", typed("response.reasoning_summary_text.delta", output_index=0, delta="think"),
              typed("response.output_text.done", output_index=1, text="Hello world"),
              ended({"type": "reasoning", "summary": [{"type": "summary_text", "text": "think"}]}, _message())),
    _response("r: text, then a call only in item.done", TEXT, typed("response.output_item.done", output_index=1, item=_item()),
              ended(_message(), _item()), tools=_PARIS),
    _response("r: text in a delta and in text.done", TEXT, typed("response.output_text.done", output_index=0, content_index=0, item_id="m1", text="Hello world"),
              typed("response.output_item.done", output_index=0, item=_message()), ended(_message())),
    _response("r: text only in the message of item.done", typed("response.output_item.done", output_index=0, item=_message()), ended(_message())),
    _response("r: text only in the response", ended(_message())),
    _response("r: text in a delta only", TEXT, ended()),
    _response("r: an item with an object as function", typed("response.output_item.added", output_index=0, item=_ODD),
              typed("response.output_item.done", output_index=0, item=_ODD), ended(), tools=((ANY, "f", ANY),), text=ANY),
    _response("r: a call without call_id", typed("response.output_item.done", output_index=0, item={k: v for k, v in _item().items() if k != "call_id"}),
              ended(), tools=((ANY, "get_weather", _ARGS),), text=ANY),
    _response("r: incomplete", TEXT, ended(_message(), status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
              columns={"finish_reason": "max_output_tokens"}),
    broken("r: failed after output", chunked(CREATED, TEXT, ended(_message(), status="failed", error={"code": "server_error", "message": "model died"})),
            says="model died", api="responses", usage={"input_tokens": 9}),
    failed("r: failed at once", chunked(CREATED, ended(status="failed", error={"code": "server_error", "message": "model died"})),
            ANY, "model died", api="responses", calls=TWICE),
    broken("r: completed with status failed after output",
            chunked(CREATED, TEXT, ended(_message(), status="failed", kind="response.completed", error={"code": "server_error", "message": "model died"})),
            says="model died", api="responses"),
    failed("r: completed with status failed at once",
            chunked(CREATED, ended(status="failed", kind="response.completed", error={"code": "server_error", "message": "model died"})),
            ANY, "model died", api="responses", calls=TWICE),
    failed("r: an error event", chunked(CREATED, typed("error", code="server_error", message="model died", param=None)), ANY, "model died",
            api="responses", calls=TWICE),
    failed("r: a whole response that failed", sized("200 OK", {"id": "resp_1", "object": "response", "status": "failed", "output": [],
            "error": {"code": "server_error", "message": "model died"}}), ANY, "model died", api="responses", calls=TWICE, mode="complete"),
    _response("r: items that are numbers", typed("response.output_item.added", output_index=0, item=5),
              typed("response.output_item.done", output_index="x", item=[1]), TEXT, ended()),
    _response("r: a text that is a number", typed("response.output_text.done", output_index=0, text=5), ended(_message()), text=ANY),
    _response("r: an output_index of 2**40", typed("response.output_item.added", output_index=2**40, item=_item("")), TEXT, ended(_message())),
    good("r: usage beside the response", chunked(CREATED, TEXT, typed("response.completed", usage=WHOLE["usage"], response={"status": "completed", "output": []})),
          api="responses", usage={"input_tokens": 9, "output_tokens": 2}),
    broken("r: no end", chunked(CREATED, TEXT), "stream_interrupted", api="responses"),
]  # fmt: skip
