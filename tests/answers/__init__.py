"""What servers really send, case by case, and the row that deltatap must make of it.

Each module holds one kind of answer: the answers that public bug reports describe, and neighbours of them. The quick
tests run every case through a worker; the poison job mixes the cases among good prompts; the fuzz tests mutate them.
"""

from __future__ import annotations

from tests.answers import chat, content, errors, keys, messages, refusals, responses, trouble

CASES = [
    *trouble.TROUBLE,
    *refusals.REFUSALS,
    *refusals.WAITS,
    *refusals.OPTIONS,
    *errors.IN_STREAM,
    *errors.FINISHES,
    *content.CONTENT,
    *content.RECORDS,
    *chat.TOOLS,
    *chat.DOUBLED,
    *chat.USAGES,
    *responses.RESPONSES,
    *messages.MESSAGES,
    *keys.KEYS,
]
