"""Typed settings: every key with its default and bounds, and the problems between keys that are valid on their own.

``settings_loading.py`` reads them, and describes what is wrong. Other modules check whether the tables, keys and
endpoints that they name exist. Their JSON and repr contain neither a proxy's password nor a credential in a header.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from deltatap import patterns
from deltatap.api import registry
from deltatap.endpoint import Endpoint, conflicts
from deltatap.prompts import OURS, stream_options_problem
from deltatap.setting_types import Body, File, Location, PositiveInt, Rate, RunId, Seconds, Section
from deltatap.template import Template

if TYPE_CHECKING:
    from deltatap.model import Mode


class Prompts(Section):
    """Where the prompts come from, a table (name or path) or a query, and which columns to copy to captures.

    Attributes:
        template, system_template: texts with the names of columns in braces, instead of columns with the finished text.
    """

    table: Location | None = "data/prompts"
    sql: str | None = None
    keep: list[str] = Field(default_factory=list)
    template: Annotated[str, Field(min_length=1)] | None = None
    system_template: Annotated[str, Field(min_length=1)] | None = None

    @property
    def source(self) -> str:
        """The source, for messages."""
        return self.table if self.table is not None else f"query {self.sql!r}"

    @property
    def templates(self) -> dict[str, Template]:
        """The templates, by the column that they replace."""
        given = {"prompt": ("template", self.template), "system": ("system_template", self.system_template)}
        return {
            column: Template.parse(f"prompts.{key}", text) for column, (key, text) in given.items() if text is not None
        }


class Captures(Section):
    """The table of captured answers: a catalog name, or a path if it contains a ``/``."""

    table: Location = "data/captures"


class Runs(Section):
    """The runs table: a catalog name, or a path if it contains a ``/``."""

    table: Location = "data/runs"


class Record(Section):
    """The table that ``deltatap record`` writes. It has the columns of `captures`."""

    table: Location = "data/recorded"


class Run(Section):
    """The identity of this run. The id of an earlier run resumes that run."""

    id: RunId | None = None
    labels: dict[str, str] = Field(default_factory=dict)


# The maximum of Spark's LIMIT.
_MOST_ROWS = 2**31 - 1


class Sample(Section):
    """A random part of the prompts. The same fraction and seed select the same request ids every time."""

    fraction: Annotated[float, Field(gt=0, le=1)]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0


class Arrivals(Section):
    """An open loop: requests start at the times of a random or a regular process, at a rate for the whole run."""

    per_second: Annotated[float, Field(gt=0, le=100_000)]
    process: Literal["poisson", "constant"] = "poisson"
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0

    def __str__(self) -> str:
        """The process, as text for the user."""
        seed = f" (seed {self.seed})" if self.process == "poisson" else ""
        return f"{self.process}, {self.per_second:,.10g} per second{seed}"

    def of(self, calls: int) -> str:
        """The process and its duration, in one line."""
        duration = f"about {round(calls / self.per_second, 1):,.10g} s for {calls:,} request{'s' * (calls != 1)}"
        return f"arrivals: {self}, {duration}"


class Capture(Section):
    """Which requests are captured, and how: the concurrency, and how often a request is retried.

    Attributes:
        where: workers: in a pandas UDF, in Spark's Python workers; driver: in the process of the driver.
        reuse: call identical requests once, within the run and from earlier completed rows.
        resume: ask the server to store each answer, and resume a broken stream instead of paying for the answer again.
        arrivals: when requests start; None: as soon as a stream is free.
        follow_s: seconds between two searches for new prompts after the run; None: end after the run.
    """

    mode: Literal["stream", "complete", "paired"] = "stream"
    where: Literal["workers", "driver"] = "workers"
    owed: Literal["new", "all"] = "new"
    concurrency: PositiveInt = 64
    streams_per_worker: PositiveInt = 256
    limit: Annotated[int, Field(ge=1, le=_MOST_ROWS)] | None = None
    sample: Sample | None = None
    reuse: bool = False
    resume: bool = False
    arrivals: Arrivals | None = None
    max_attempts: PositiveInt = 5
    max_broken: PositiveInt = 2
    max_runs: PositiveInt = 3
    retry_for_s: Annotated[float, Field(ge=0)] = 600
    follow_s: Seconds | None = None
    keep_interrupted: bool = False
    keep_raw: bool = False
    fail_above_error_rate: Rate = 0.5

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes in which each prompt is captured."""
        return ("stream", "complete") if self.mode == "paired" else (self.mode,)


class Timeouts(Section):
    """Timeouts in seconds: connect, first byte of the response, gap between bytes, whole call, draining."""

    connect_s: Seconds = 10
    first_byte_s: Seconds = 120
    idle_s: Seconds = 60
    total_s: Seconds = 900
    grace_s: Annotated[float, Field(ge=0)] = 30


class Limits(Section):
    """Maximum requests and tokens that the whole run starts in any 60 seconds."""

    requests_per_minute: Annotated[float, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None


class Budget(Section):
    """Maximum use of the whole run. When a budget is used up, the run drains and ends as budget_exhausted."""

    cost_usd: Annotated[float, Field(gt=0)] | None = None
    tokens: PositiveInt | None = None
    requests: PositiveInt | None = None
    runtime_s: Seconds | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits and budgets of a run; None means unlimited.

    Attributes:
        requests_per_minute, tokens_per_minute: within any sixty seconds.
        requests, tokens, cost_usd: in total, including the expected use of open calls.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    requests: int | None = None
    tokens: int | None = None
    cost_usd: float | None = None

    @property
    def any(self) -> bool:
        """Whether the run has a limit or a budget."""
        return any(getattr(self, name) is not None for name in self.__slots__)


def _pattern(pattern: str) -> str:
    if (expected := patterns.expected(pattern)) is not None:
        raise PydanticCustomError("pattern", "{expected}", {"expected": expected})
    return pattern


class Moderation(Section):
    """How the text of an answer is checked while it arrives, and at its end.

    Attributes:
        every_chars: number of new characters after which the text is checked again.
        stop: cut a stream when its text is flagged.
        model: of the endpoint's `/moderations`. None: `omni-moderation-latest`, unless there are patterns.
        patterns: regular expressions of RE2. A text that contains one is flagged without a call.
    """

    every_chars: PositiveInt = 500
    stop: bool = False
    model: Annotated[str, Field(min_length=1)] | None = None
    patterns: list[Annotated[str, AfterValidator(_pattern)]] = Field(default_factory=list)

    @property
    def asks(self) -> str | None:
        """The model that is called; None if only patterns are used."""
        return self.model or (None if self.patterns else "omni-moderation-latest")


class Tokens(Section):
    """The encoding for models that tiktoken does not know."""

    fallback_encoding: Literal["o200k_base", "cl100k_base", "o200k_harmony"] = "o200k_base"


class State(Section):
    """The folder of journal, plan and control files, and how often files are written to it.

    Attributes:
        dir: the folder.
        flush_s: the interval in seconds at which workers flush the journal.
        files_per_s: how many files the driver, and each worker, may create per second.
    """

    dir: File = "data/state"
    flush_s: Seconds = 1
    files_per_s: Annotated[int, Field(ge=1, le=1000)] = 5


class Slo(Section):
    """Bounds in ms that a completed answer must be within to count as good. None: no bound."""

    ttft_ms: Annotated[float, Field(gt=0)] | None = None
    tpot_ms: Annotated[float, Field(gt=0)] | None = None
    e2e_ms: Annotated[float, Field(gt=0)] | None = None

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by metric."""
        return {name: bound for name, bound in self.model_dump().items() if bound is not None}


class Analysis(Section):
    """Where the metrics tables are, and which rows count.

    Attributes:
        tables: a schema (``catalog.schema``) or a folder. None: next to captures.
        max_loop_lag_ms: if deltatap's event loop ran later than this, leave the row out of the latencies, or, if its
            times are the kernel's, only the chunks that the kernel merged. None: keep all.
        slo: the bounds of a good answer.
    """

    tables: Location | None = None
    max_loop_lag_ms: Annotated[float, Field(gt=0)] | None = 50
    slo: Slo = Field(default_factory=Slo)


class Spark(Section):
    """The master of a local session, and a folder with the Delta jars. Not used if a session already exists."""

    master: str = "local[*]"
    jars: File | None = None


class Settings(Section):
    """The whole configuration. ``conf/local.yml`` explains every key."""

    prompts: Prompts = Field(default_factory=Prompts)
    captures: Captures = Field(default_factory=Captures)
    runs: Runs = Field(default_factory=Runs)
    record: Record = Field(default_factory=Record)
    run: Run = Field(default_factory=Run)
    endpoint: Endpoint = Field(default_factory=Endpoint)
    request: Body = Field(default_factory=lambda: {"temperature": 0})
    capture: Capture = Field(default_factory=Capture)
    timeouts: Timeouts = Field(default_factory=Timeouts)
    limits: Limits = Field(default_factory=Limits)
    budget: Budget = Field(default_factory=Budget)
    moderation: Moderation | None = None
    tokens: Tokens = Field(default_factory=Tokens)
    prices: str | list[str] | None = "conf/prices.yml"
    state: State = Field(default_factory=State)
    analysis: Analysis = Field(default_factory=Analysis)
    spark: Spark = Field(default_factory=Spark)

    def of_run(self, run_id: str) -> Settings:
        """The settings with the run's id in place of ``{run_id}`` in `endpoint.metadata`."""
        filled = {name: value.replace("{run_id}", run_id) for name, value in self.endpoint.metadata.items()}
        return self.model_copy(update={"endpoint": self.endpoint.model_copy(update={"metadata": filled})})

    @property
    def bounds(self) -> Bounds:
        """The limits and budgets of the run."""
        limits, budget = self.limits, self.budget
        return Bounds(
            limits.requests_per_minute, limits.tokens_per_minute, budget.requests, budget.tokens, budget.cost_usd
        )


def problems_between(settings: Settings) -> list[str]:
    """Problems between keys that are valid on their own."""
    problems = []
    if (settings.prompts.table is None) == (settings.prompts.sql is None):
        problems.append("prompts: expected exactly one of table and sql (to unset table: `table: null`)")
    try:
        _ = settings.prompts.templates
    except ValueError as error:
        problems.append(str(error))
    ours = sorted(
        {*OURS, registry.specification(settings.endpoint.api).prompt_field, "model"} & settings.request.keys()
    )
    problems += [f"request.{key}: must not be set: deltatap sets it" for key in ours]
    if (problem := stream_options_problem(settings.request)) is not None:
        problems.append(f"request.{problem}")
    problems += conflicts(settings.endpoint)
    problems += _resume_problems(settings)
    if settings.captures.table == settings.runs.table:
        problems.append("captures.table and runs.table: expected two different tables")
    if settings.record.table in (settings.prompts.table, settings.runs.table):
        problems.append("record.table: must differ from prompts.table and runs.table")
    if settings.prompts.table in (settings.captures.table, settings.runs.table):
        problems.append("prompts.table: must differ from captures.table and runs.table")
    if settings.capture.arrivals is not None and settings.capture.mode == "paired":
        problems.append("capture.arrivals: expected capture.mode stream or complete, found paired")
    if settings.timeouts.total_s < max(settings.timeouts.first_byte_s, settings.timeouts.idle_s):
        problems.append("timeouts.total_s: expected at least first_byte_s and idle_s")
    return problems


def _resume_problems(settings: Settings) -> list[str]:
    """Problems of ``capture.resume``, and of parameters that need it."""
    api, resume = registry.specification(settings.endpoint.api), settings.capture.resume
    problems = []
    if resume and not api.resume:
        able = " or ".join(each.name for each in registry.specifications() if each.resume)
        problems.append(f"capture.resume: expected endpoint.api {able}, found {api.name}, which cannot resume streams")
    if resume and settings.capture.mode == "complete":
        problems.append(
            "capture.resume: expected capture.mode stream or paired, found complete: only streams break off"
        )
    if (why := api.resume_problem(settings.request, resume=resume)) is not None:
        problems.append(f"request.{why}")
    return problems
