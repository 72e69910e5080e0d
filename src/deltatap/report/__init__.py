"""The report: one HTML page about one run or several, which opens without a network.

Needs the extra ``report``, which installs jinja2 and plotly.

Raises:
    MissingExtraError: on import, when jinja2 or plotly is not installed.
"""

from __future__ import annotations

from deltatap.errors import missing_extra

try:
    from deltatap.report.page import write_report
except ModuleNotFoundError as _error:
    raise missing_extra(_error, "report") from _error

__all__ = ["write_report"]
