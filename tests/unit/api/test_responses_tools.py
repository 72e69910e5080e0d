"""Calls of tools in the Responses API that are not functions: what is stored of each, also of one that was cut."""

from __future__ import annotations

from typing import Any

import pytest

from deltatap.http.outcomes import conclude
from tests.responses import added, call, completed, done, event, joined, received, tools

SHELL = {
    "type": "shell_call",
    "id": "sh_1",
    "call_id": "call_1",
    "status": "completed",
    "action": {"commands": ["ls", "pwd"]},
}
PATCH = {
    "type": "apply_patch_call",
    "id": "ap_1",
    "call_id": "call_1",
    "operation": {"type": "delete_file", "path": "x"},
}
CLICK = {
    "type": "computer_call",
    "id": "cu_1",
    "call_id": "call_1",
    "action": {"type": "click", "x": 1, "y": 2},
    "pending_safety_checks": [],
}
LOCAL = {
    "type": "local_shell_call",
    "id": "ls_1",
    "call_id": "call_1",
    "action": {"type": "exec", "command": ["ls"], "env": {}},
}
RESULT = {
    "type": "shell_call_output",
    "id": "so_1",
    "call_id": "call_1",
    "output": [{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
}
CODE = {
    "type": "code_interpreter_call",
    "id": "ci_1",
    "code": "print(1)",
    "container_id": "c",
    "outputs": [{"type": "logs", "logs": "1"}],
}
MCP = {"type": "mcp_call", "id": "mcp_1", "name": "f", "server_label": "s", "arguments": "{}", "output": "x"}
# The items, and what is stored of each.
ITEMS = [
    (SHELL, call("shell", '{"action":{"commands":["ls","pwd"]}}', type_="shell_call")),
    (PATCH, call("apply_patch", '{"operation":{"type":"delete_file","path":"x"}}', type_="apply_patch_call")),
    (CLICK, call("computer", '{"action":{"type":"click","x":1,"y":2}}', type_="computer_call")),
    (LOCAL, call("local_shell", '{"action":{"type":"exec","command":["ls"],"env":{}}}', type_="local_shell_call")),
    *((item, item) for item in (
        RESULT, CODE, MCP, {"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "query": "x"}},
        {"type": "file_search_call", "id": "fs_1", "queries": ["x"], "results": None},
        {"type": "mcp_approval_request", "id": "mcpr_1", "name": "f", "server_label": "s", "arguments": "{}"},
        {"type": "tool_search_call", "id": "ts_1", "call_id": None, "execution": "server", "arguments": {"a": 1}, "status": "completed"},
        {"type": "program", "id": "p_1", "call_id": "call_9", "code": "f()", "fingerprint": "x"},
    )),
]  # fmt: skip


@pytest.mark.parametrize(("item", "stored"), ITEMS, ids=lambda given: given.get("type"))
def test_calls_of_tools_that_are_not_functions(item: dict[str, Any], stored: dict[str, Any]) -> None:
    started = {**item, "status": "in_progress"}
    for events in ([completed(item)], [done(item), completed(item)], [added(started), done(item), completed(item)]):
        found = received(*events)
        assert tools(found) == [stored]
        assert found.output == (joined(found, "tool_calls") != "")
        assert conclude(found, None) == ("completed", None)
    assert tools(received(added(started)))[0]["type"] == item["type"], "the stream broke off"


def test_a_call_and_its_result_are_two() -> None:
    found = received(done(SHELL), done(RESULT, 1), completed(SHELL, RESULT))
    assert tools(found) == [ITEMS[0][1], RESULT]


def test_the_commands_of_a_shell_arrive_in_pieces() -> None:
    empty = {**SHELL, "action": {"commands": []}}
    pieces = [
        event("shell_call_command.added", command_index=0, command=""),
        event("shell_call_command.delta", command_index=0, delta="l"),
        event("shell_call_command.delta", command_index=0, delta="s"),
        event("shell_call_command.done", command_index=0, command="ls"),
        event("shell_call_command.done", command_index=1, command="pwd"),
    ]
    cut = received(added(empty), *pieces)
    assert tools(cut) == [call("shell", "ls\npwd\n", type_="shell_call")]
    assert joined(cut, "tool_calls") == "lspwd"
    whole = received(added(empty), *pieces, done(SHELL), completed(SHELL))
    assert tools(whole) == [ITEMS[0][1]]
    assert joined(whole, "tool_calls") == "lspwd"


def test_the_output_of_a_shell_is_kept() -> None:
    started = {**RESULT, "output": [], "status": "in_progress"}
    content = event("shell_call_output_content.done", command_index=0, output=RESULT["output"])
    assert tools(received(added(started), content)) == [{**RESULT, "status": "in_progress"}]
    assert tools(received(added(started), content, done(RESULT))) == [RESULT]


def test_the_arguments_of_a_call_that_was_cut_are_kept() -> None:
    pieces = [
        event("mcp_call_arguments.delta", delta='{"a'),
        event("code_interpreter_call_code.delta", 1, delta="print("),
    ]
    found = received(added({**MCP, "arguments": "", "output": None}), added({**CODE, "code": ""}, 1), *pieces)
    assert [found.get("arguments", found.get("code")) for found in tools(found)] == ['{"a', "print("]


def test_an_image_is_marked_and_not_stored() -> None:
    image = {
        "type": "image_generation_call",
        "id": "ig_1",
        "status": "completed",
        "result": "iVBOR" * 1000,
        "size": "1024x1024",
    }
    partial = event("image_generation_call.partial_image", partial_image_b64="iVBOR" * 1000, partial_image_index=0)
    found = received(partial, done(image), completed(image))
    assert tools(found) == [{**image, "result": "(image: 5,000 characters of base64)"}]
    plot = {
        **CODE,
        "outputs": [{"type": "image", "url": "data:image/png;base64,iVBOR"}, {"type": "image", "url": "https://x"}],
    }
    assert [output["url"] for output in tools(received(done(plot)))[0]["outputs"]] == [
        "(image: 27 characters of base64)", "https://x",
    ]  # fmt: skip
