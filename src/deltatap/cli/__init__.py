"""The command line: arguments, exit codes and what each command prints. The job scripts run the same commands.

Spark, pandas and the settings are imported when a command runs, so that ``--help`` and ``--version`` stay fast.
"""

from deltatap.cli.beginning import init
from deltatap.cli.capturing import capture, check, load, stop
from deltatap.cli.looking import analyze, compare, failures, report, runs, show
from deltatap.cli.reconciling import reconcile
from deltatap.cli.recording import record
from deltatap.cli.runner import CONDITION_HOLDS, CONFIGURATION, EXTRAS, FAILED, OK, TOO_MANY_ERRORS, app, run, run_job
from deltatap.cli.serving import replay, simulate
from deltatap.cli.sweeping import sweep
from deltatap.cli.tracing import export
from deltatap.cli.trending import trend
from deltatap.cli.watching import watch

__all__ = [
    "CONDITION_HOLDS",
    "CONFIGURATION",
    "EXTRAS",
    "FAILED",
    "OK",
    "TOO_MANY_ERRORS",
    "analyze",
    "app",
    "capture",
    "check",
    "compare",
    "export",
    "failures",
    "init",
    "load",
    "reconcile",
    "record",
    "replay",
    "report",
    "run",
    "run_job",
    "runs",
    "show",
    "simulate",
    "stop",
    "sweep",
    "trend",
    "watch",
]
