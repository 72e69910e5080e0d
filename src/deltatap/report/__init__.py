"""One self-contained HTML page about one run, or several beside one another: opens offline, shows what was measured."""

from __future__ import annotations

from deltatap.report.page import write_report

__all__ = ["write_report"]
