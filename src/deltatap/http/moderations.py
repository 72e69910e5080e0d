"""The response of an OpenAI-compatible ``/moderations`` endpoint. Pure; ``client.py`` makes the call."""

from __future__ import annotations

from deltatap.api.values import bounded, decode
from deltatap.errors import ProtocolError
from deltatap.model import Verdict

# How many categories are kept, and the length of a name.
_MOST, _LONGEST = 64, 100


def verdict_of(body: bytes) -> Verdict:
    """The verdict in the body of a response. A text is flagged if any of the results is.

    Raises:
        ProtocolError: it is not the result of a moderation.
    """
    try:
        results = decode(body)["results"]
        flagged = [result["flagged"] for result in results]
        if not flagged or any(type(each) is not bool for each in flagged):
            raise TypeError  # noqa: TRY301 - one message for all forms
        named = [
            name for result in results for name, is_true in (result.get("categories") or {}).items() if is_true is True
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError("the response is not the result of a moderation") from error
    return Verdict(any(flagged), tuple(bounded(name, _LONGEST) for name in dict.fromkeys(named))[:_MOST])
