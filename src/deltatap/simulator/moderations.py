"""The simulator's `/moderations`: flags texts that contain a word, with a delay and faults, and records its calls.

Each call has a number for its model, so that `omni-moderation-latest!500:2` fails twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from deltatap.simulator.faults import BadFaultError, Fault, in_sequence, of_model
from deltatap.simulator.refusals import of_fault, refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

# The words that are flagged unless others are given.
FLAGGED = ("forbidden",)
_STALL_S = 3600.0


class Moderations:
    """Answers and records the calls."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.calls: deque[dict[str, Any]] = deque(maxlen=self._keep)
        self._by_model: Counter[str] = Counter()
        self.open = self.most_open = 0

    async def answer(self, request: Request, words: Sequence[str], delay_s: float) -> Response:
        """Answer one call.

        Args:
            request: the call.
            words: the words that are flagged. The category of a word is the word itself.
            delay_s: how long the answer takes.
        """
        started = time.monotonic()
        try:
            body = await request.json()
            text, model = body["input"], str(body.get("model"))
            texts = [text] if isinstance(text, str) else [str(each) for each in text]
            name, faults = of_model(model)
        except BadFaultError as error:
            return refusal(None, "400", str(error))
        except (ValueError, KeyError, TypeError, AttributeError):
            return refusal(None, "400", "expected a JSON body with input.")
        fault = in_sequence(faults, self._by_model[model]) or Fault(())
        self._by_model[model] += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            wait_s = fault.seconds(_STALL_S) if "stall" in fault else delay_s
            await asyncio.sleep(wait_s + (fault.seconds(5) if "slow_headers" in fault else 0))
        finally:
            self.open -= 1
        results = [_result(each, words) for each in texts]
        refused = of_fault(None, fault)
        self.calls.append(
            {
                "started": started,
                "model": name,
                "texts": texts,
                "flagged": refused is None and any(result["flagged"] for result in results),
                "fault": fault.text or None,
            }
        )
        if refused is not None:
            return refused
        if "html" in fault:
            return PlainTextResponse("<html><body>Welcome</body></html>", media_type="text/html")
        if "bad_json" in fault:
            return Response(b'{"results": [', media_type="application/json")
        return JSONResponse({"id": f"modr-sim{len(self.calls):08d}", "model": name, "results": results})


def _result(text: str, words: Sequence[str]) -> dict[str, Any]:
    found = {word: word in text for word in words}
    scores = {word: float(is_in) for word, is_in in found.items()}
    return {"flagged": any(found.values()), "categories": found, "category_scores": scores}
