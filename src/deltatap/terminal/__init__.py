"""The output of the commands. Lays out rows; ``analysis`` reads and computes them."""

from deltatap.terminal.console import line, plain_console
from deltatap.terminal.metrics import comparison_json, show_comparison, show_counts, show_metrics
from deltatap.terminal.requests import show_capture, show_failures, sparkline
from deltatap.terminal.runs import runs_json, show_price_changes, show_runs, show_summary

__all__ = [
    "comparison_json", "line", "plain_console", "runs_json", "show_capture", "show_comparison", "show_counts",
    "show_failures", "show_metrics", "show_price_changes", "show_runs", "show_summary", "sparkline",
]  # fmt: skip
