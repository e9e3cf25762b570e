"""What every process says about itself: log lines with their request, metrics, and the version."""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import msgspec

from serve_app.config import LoggingSettings
from serve_app.log_lines import LineHandler, LineRecord

logger = logging.getLogger(__name__)

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that the present task works for."""

_PACKAGES = ("serve_app", "deployments", "cluster")
_configured_level = "INFO"


@dataclass(frozen=True, eq=False)
class Metric:
    """Something that is measured.

    Attributes:
        kind: What Prometheus calls its type.
        process: Who measures it.
        name: Ends in its unit, and in `_total` if it only grows.
        labels: In the order in which their values are given.
        words: What it is.
        buckets: Upper bounds, of a histogram.
    """

    kind: Literal["counter", "gauge", "histogram"]
    process: str
    name: str
    labels: tuple[str, ...]
    words: str
    buckets: tuple[float, ...] = ()


def _rows() -> list[Metric]:
    return [value for value in globals().values() if isinstance(value, Metric)]


_WAIT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 40, 80, 160)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5)
_ANSWER_S = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_WHOSE = ("tenant", "model", "adapter")

# fmt: off
# --- gateway --------------------------------------------------------------------------------

REQUESTS = Metric("counter", "gateway", "arriero_requests_total", (*_WHOSE, "outcome"),
    "Requests for a model that have ended: finished, failed, cancelled or refused.")
RESPONSES = Metric("counter", "gateway", "arriero_responses_total", ("code",),
    "HTTP answers that have begun, by status; of all paths.")
IN_FLIGHT = Metric("gauge", "gateway", "arriero_in_flight_requests", (),
    "Requests for a model being answered.")
TTFT = Metric("histogram", "gateway", "arriero_time_to_first_token_seconds", ("tenant", "model"),
    "From a request's arrival to its first token, where its model did not sleep then.", _WAIT_S)
WAKE = Metric("histogram", "gateway", "arriero_wake_seconds", ("model",),
    "The same where it slept or was waking.", _ANSWER_S)
INTER_TOKEN = Metric("histogram", "gateway", "arriero_inter_token_seconds", ("tenant", "model"),
    "From one token of a completion to the next.", (*_TOKEN_S, 1, 2.5))
DURATION = Metric("histogram", "gateway", "arriero_request_duration_seconds", ("tenant", "model"),
    "From a request's arrival to its end.", _ANSWER_S)
PROMPT_TOKENS = Metric("counter", "gateway", "arriero_prompt_tokens_total", _WHOSE,
    "Tokens of prompts that began.")
CACHED_TOKENS = Metric("counter", "gateway", "arriero_cached_tokens_total", _WHOSE,
    "Those of them that an engine found computed.")
COMPLETION_TOKENS = Metric("counter", "gateway", "arriero_completion_tokens_total", _WHOSE,
    "Tokens that were generated, as they come.")
COST = Metric("counter", "gateway", "arriero_cost_usd_total", ("tenant", "model"),
    "What ended requests cost by the price list.")
MODEL_READY = Metric("gauge", "gateway", "arriero_model_ready", ("model",),
    "1 when this gateway can serve it, also by waking it first, else 0.")
MIGRATIONS = Metric("counter", "gateway", "arriero_migrations_total", ("model", "cause"),
    "Requests that lost their engine and went on: it died, failed to run them, or left.")
CELL_MIGRATIONS = Metric("counter", "gateway", "arriero_cell_migrations_total", ("model",),
    "Requests that went on in another cell as theirs had no engine left, or came back.")
MIGRATION_GAP = Metric("histogram", "gateway", "arriero_migration_gap_seconds", ("model",),
    "From the loss of an engine to the next token from another one.", _WAIT_S)
RECOMPUTED_TOKENS = Metric("counter", "gateway", "arriero_recomputed_tokens_total", ("model",),
    "Tokens of prompts and answers that another engine had to compute again.")
STOPPED = Metric("counter", "gateway", "arriero_stopped_requests_total", ("model",),
    "Requests that are not tried again, as engines died under them.")
UNSTORED_RECORDS = Metric("gauge", "gateway", "arriero_usage_records_waiting", (),
    "Usage records that are neither on disk nor in the store.")
LOST_RECORDS = Metric("gauge", "gateway", "arriero_usage_records_lost", (),
    "Usage records for which there was no room.")

# --- router ---------------------------------------------------------------------------------

WAITING = Metric("gauge", "router", "arriero_waiting_requests", ("domain", "tenant"),
    "Requests that wait.")
WAITING_LIMIT = Metric("gauge", "router", "arriero_waiting_requests_limit", ("domain",),
    "How many may wait.")
RUNNING = Metric("gauge", "router", "arriero_running_requests", ("domain", "tenant"),
    "Requests that engines have.")
QUEUE_WAIT = Metric("histogram", "router", "arriero_queue_wait_seconds", ("tenant", "model"),
    "From a request's arrival at the router to its engine.", _WAIT_S)
GRANTS = Metric("counter", "router", "arriero_grants_total", ("model", "kind"),
    "Requests sent to an engine: to one with room, or express to a full one.")
REFUSALS = Metric("counter", "router", "arriero_router_refusals_total", ("model", "reason"),
    "Requests refused: the queue was crowded, they waited too long, or their model was replaced.")
SERVICE_GAP = Metric("gauge", "router", "arriero_fairness_gap_tokens", ("domain",),
    "Greatest difference of service of two tenants that wait, in tokens of cost and weight 1.")
SERVICE_GAP_BOUND = Metric("gauge", "router", "arriero_fairness_gap_bound_tokens", ("domain",),
    "What that difference cannot exceed, by the longest request so far.")
COUNTER_LAG = Metric("gauge", "router", "arriero_fairness_lag_tokens", ("domain", "tenant"),
    "How far a waiting tenant is behind the waiting tenant that has got the most service.")
ENGINES = Metric("gauge", "router", "arriero_engines", ("model", "state"),
    "Engines, by what they say they do.")
WANTED_ENGINES = Metric("gauge", "router", "arriero_wanted_engines", ("model",),
    "Engines that there are to be: a fixed number, or what demand asks for.")
ENGINES_LOST = Metric("counter", "router", "arriero_engines_lost_total", ("model", "cause"),
    "Engines that are gone: they left, said that they failed, or fell silent.")
FAILED_STARTS = Metric("gauge", "router", "arriero_engine_failed_starts", ("model",),
    "Engines that failed to start, one after the other, since one was ready.")
ADAPTER_REQUESTS = Metric("counter", "router", "arriero_adapter_requests_total",
    ("model", "result"),
    "Requests with an adapter: a hit found it in some engine's memory, a miss had it loaded.")

# --- ledger ---------------------------------------------------------------------------------

LIMIT_REFUSALS = Metric("counter", "ledger", "arriero_limit_refusals_total", ("tenant", "limit"),
    "Requests refused, by the limit in their way.")
RESERVED_TOKENS = Metric("counter", "ledger", "arriero_reserved_tokens_total", ("tenant",),
    "Tokens set aside for requests of tenants that have limits.")
SETTLED_TOKENS = Metric("counter", "ledger", "arriero_settled_tokens_total", ("tenant",),
    "Tokens that those requests used in the end.")
LEASES = Metric("gauge", "ledger", "arriero_ledger_leases", (),
    "Reservations that run.")
BUDGET_USED = Metric("gauge", "ledger", "arriero_budget_used_ratio", ("tenant", "limit"),
    "Share of a tenant's daily or monthly budget that is spent or reserved.")
JOURNAL_SYNC = Metric("histogram", "ledger", "arriero_ledger_sync_seconds", (),
    "What it takes to force the journal to disk.", _SHORT_S)
UNSYNCED = Metric("gauge", "ledger", "arriero_ledger_unsynced_seconds", (),
    "Age of the oldest entry of the journal that is not on disk.")

# --- engine ---------------------------------------------------------------------------------

BATCH = Metric("gauge", "engine", "arriero_engine_running_requests", ("model",),
    "Requests in its batch.")
BATCH_LIMIT = Metric("gauge", "engine", "arriero_engine_running_requests_limit", ("model",),
    "Places in its batch.")
ENGINE_WAITING = Metric("gauge", "engine", "arriero_engine_waiting_requests", ("model",),
    "Requests it has not begun.")
KV_USED = Metric("gauge", "engine", "arriero_engine_kv_used_ratio", ("model",),
    "Share of KV-cache blocks in use.")
ENGINE_TOKENS = Metric("counter", "engine", "arriero_engine_tokens_total", ("model",),
    "Tokens that it has generated.")
ADAPTERS_RESIDENT = Metric("gauge", "engine", "arriero_adapters_resident", ("model", "tier"),
    "Adapters on this node's disk, in host memory, in slots of the batch.")
ADAPTER_LOADS = Metric("counter", "engine", "arriero_adapter_loads_total", ("model", "outcome"),
    "Adapters brought into host memory, or not: loaded, failed.")
ADAPTER_LOAD = Metric("histogram", "engine", "arriero_adapter_load_seconds", ("model",),
    "From the wish for an adapter to its place in host memory.", _WAIT_S)
ADAPTER_EVICTIONS = Metric("counter", "engine", "arriero_adapter_evictions_total", ("model",),
    "Adapters that left host memory for another one.")

# --- every process --------------------------------------------------------------------------

LOOP_LAG = Metric("histogram", "every process", "arriero_event_loop_lag_seconds", (),
    "How much later than asked for the event loop wakes a task.", _SHORT_S)

# --- fleet ----------------------------------------------------------------------------------

NODES = Metric("gauge", "fleet", "arriero_fleet_nodes", ("cloud", "zone", "market", "state"),
    "Nodes that are paid for or asked for: starting, ready or leaving.")
FLEET_COST = Metric("gauge", "fleet", "arriero_fleet_cost_usd_per_hour",
    ("cloud", "zone", "market"),
    "What its nodes cost at this moment.")
RECLAIMS = Metric("counter", "fleet", "arriero_fleet_reclaims_total", ("cloud", "zone"),
    "Nodes that their cloud took back.")

# --- reclaim agent --------------------------------------------------------------------------

RECLAIM_NOTICES = Metric("counter", "reclaim agent", "arriero_reclaim_notices_total",
    ("cloud", "kind"),
    "What its cloud said of this node: that a reclaim is likely, that it is certain.")
RECLAIM_LEFT = Metric("gauge", "reclaim agent", "arriero_reclaim_notice_left_seconds", ("cloud",),
    "Time that was left to this node when it began to drain; 0 before.")
RECLAIM_UNANSWERED = Metric("counter", "reclaim agent", "arriero_reclaim_unanswered_total",
    ("cloud",),
    "Questions that the cloud's metadata service did not answer.")
# fmt: on

TABLE = tuple(_rows())
"""All there is, in the order above."""


def version() -> str:
    """This platform's version; "0" from a folder that was never installed."""
    try:
        return metadata.version("arriero")
    except metadata.PackageNotFoundError:
        return "0"


def _fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    return record.fields if isinstance(record, LineRecord) else {}


class _HumanFormatter(logging.Formatter):
    """time LEVEL module: text [request id]."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line, and a traceback where there is one."""
        line = super().format(record)
        fields = _fields_of(record)
        if fields:
            line += " " + " ".join(f"{name}={value}" for name, value in fields.items())
        request = request_id.get()
        return f"{line} [{request}]" if request else line


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line."""
        fields = {
            "time_s": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get() or None,
            **_fields_of(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def set_up_logging(settings: LoggingSettings) -> None:
    """Sends this platform's log lines to standard error. May be called again."""
    global _configured_level
    _configured_level = settings.level
    handler = LineHandler()
    handler.setFormatter(_JsonFormatter() if settings.format == "json" else _HumanFormatter())
    for package in _PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(settings.level)
        for old in logger.handlers:
            old.close()
        logger.handlers = [handler]
        logger.propagate = False


def set_log_level(level: str) -> None:
    """Changes how much this process logs; empty is what the settings say."""
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level or _configured_level)
    logger.info("The log level is now %s.", log_level())


def log_level() -> str:
    """The least severe level that is written."""
    return logging.getLevelName(logging.getLogger(_PACKAGES[0]).level)
