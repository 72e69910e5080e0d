"""The breaker of each model: after several refusals and no success, a worker stops sending it requests. Pure.

Counts 403 and 404 per model (``model.ERRORS``, ``parks_model``). Leaves dropping the requests to ``engine.py``, and
whether the run stops to ``driver/stopping.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deltatap.messages import Parked
from deltatap.model import ERRORS

if TYPE_CHECKING:
    from deltatap.messages import Refusal
    from deltatap.model import Call

REFUSALS = 3


class Breaker:
    """One worker's models. Belongs to the engine's event loop; other threads only read.

    Attributes:
        succeeded: whether any call has received output or completed.
    """

    def __init__(self) -> None:
        self.succeeded = False
        self._refusals: dict[str, int] = {}
        self._parked: dict[str, Parked] = {}

    def ended(self, call: Call, refusal: Refusal) -> bool:
        """Count a call; returns whether this parks its model. A success lets the model's requests start again.

        Args:
            call: the call.
            refusal: how the call is described if it parks its model.
        """
        model = refusal.model
        if call.error is None or call.received.output:
            self.succeeded = True
            self._refusals.pop(model, None)
            self._parked.pop(model, None)
            return False
        if not ERRORS[call.error.type].parks_model:
            return False
        self._refusals[model] = self._refusals.get(model, 0) + 1
        if self._refusals[model] < REFUSALS or model in self._parked:
            return False
        self._parked[model] = Parked(refusal)
        return True

    def parked(self, model: str) -> Parked | None:
        """Why a model's requests do not start; None if they may start."""
        return self._parked.get(model)

    def dropped(self, model: str) -> None:
        """Count a request of a parked model that is not sent."""
        parked = self._parked[model]
        self._parked[model] = replace(parked, requests=parked.requests + 1)

    def status(self) -> dict[str, Any]:
        """This module's fields of a heartbeat."""
        return {"parked": tuple(self._parked.values()), "succeeded": self.succeeded}
