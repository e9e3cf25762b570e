"""Counts and measures, and writes it down as Prometheus reads it.

A process has one `Metrics`. Whoever measures asks it once for a series (`counter`, `gauge`,
`histogram`) and keeps that: to add to one is an addition, without a lock or a look-up.

1. A series is written by one thread. Any thread may read.
2. Label values that others choose are bounded here, and nowhere else (`BoundedNames`).
3. Only what the table in `serve_app.telemetry` has can be measured.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import TypeVar

from serve_app.config_metrics import MetricsSettings
from serve_app.telemetry import Metric

_MOST_FRESH = 128
"""Values of a histogram that wait to be sorted into buckets."""


class BoundedNames:
    """Keeps a label bounded: the first values are named, all others share one name.

    Args:
        limit: How many are named.
    """

    OTHER = "(other)"
    """No tenant and no adapter can have this name."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._named: set[str] = {""}

    def of(self, name: str) -> str:
        """Returns the label's value."""
        if name not in self._named:
            if len(self._named) > self.limit:
                return self.OTHER
            self._named.add(name)
        return name


class Counter:
    """Only goes up."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Counts."""
        self.value += amount

    def samples(self) -> Iterator[tuple[str, str, float]]:
        """Yields suffix of the name, further label, value."""
        yield "", "", self.value


class Gauge:
    """Goes up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        """Replaces the value."""
        self.value = float(value)  # True is 1 here, and no word.

    def samples(self) -> Iterator[tuple[str, str, float]]:
        """Yields suffix of the name, further label, value."""
        yield "", "", self.value


class Histogram:
    """Counts measured values by size.

    A value is put on a list; sorting some together into buckets takes a fraction of what one by one
    takes, and a gateway measures each token.

    Args:
        bounds: Upper bounds of the buckets, growing.
    """

    __slots__ = ("_bounds", "_counts", "_fresh", "_lock", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._fresh: list[float] = []
        """Not in buckets yet."""
        self._lock = Lock()
        """Of moving values, so that a reader sees each once."""

    def observe(self, value: float, times: int = 1) -> None:
        """Takes a value that was measured once, or several times over."""
        if times == 1:
            self._fresh.append(value)
        else:
            self._fresh += [value] * times
        if len(self._fresh) >= _MOST_FRESH:
            self._sort()

    def _sort(self) -> None:
        with self._lock:
            fresh, self._fresh = self._fresh, []
            self._sum += sum(fresh)
            self._counts = _add_by_size(self._counts, self._bounds, fresh)

    def samples(self) -> Iterator[tuple[str, str, float]]:
        """Yields suffix of the name, further label, value."""
        with self._lock:
            counts, fresh, sum_ = self._counts, self._fresh.copy(), self._sum
        counts, total = _add_by_size(counts, self._bounds, fresh), 0
        for bound, count in zip(self._bounds, counts, strict=False):
            total += count
            yield "_bucket", f'le="{bound:g}"', total
        total += counts[-1]
        yield "_bucket", 'le="+Inf"', total
        yield "_count", "", total
        yield "_sum", "", sum_ + sum(fresh)


def _add_by_size(counts: list[int], bounds: Sequence[float], values: list[float]) -> list[int]:
    """Returns the counts with these values added, each where its bucket is."""
    values = sorted(values)
    below = [*(bisect_right(values, bound) for bound in bounds), len(values)]
    return [n + here - before for n, here, before in zip(counts, below, [0, *below], strict=False)]


class _NoCounter(Counter):
    __slots__ = ()

    def add(self, amount: float = 1.0) -> None:
        pass


class _NoGauge(Gauge):
    __slots__ = ()

    def set(self, value: float) -> None:
        pass


class _NoHistogram(Histogram):
    __slots__ = ()

    def observe(self, value: float, times: int = 1) -> None:
        pass


_Series = Counter | Gauge | Histogram
_S = TypeVar("_S", Counter, Gauge, Histogram)
_NO_COUNTER, _NO_GAUGE, _NO_HISTOGRAM = _NoCounter(), _NoGauge(), _NoHistogram(())


class Metrics:
    """All series of one process.

    Args:
        settings: How many names labels have; whether anything is measured.
    """

    def __init__(self, settings: MetricsSettings = MetricsSettings()) -> None:  # noqa: B008
        self._families: dict[Metric, dict[tuple[str, ...], _Series]] = {}
        self.is_on = True
        """Whether anything is kept."""
        self._bounded = {"tenant": BoundedNames(0), "adapter": BoundedNames(0)}
        self.configure(settings)

    def configure(self, settings: MetricsSettings) -> None:
        """Takes settings; what is measured already goes on."""
        self.is_on = settings.enabled
        self._bounded["tenant"].limit = settings.max_tenants
        self._bounded["adapter"].limit = settings.max_adapters

    def counter(self, metric: Metric, *labels: str) -> Counter:
        """Returns the series of these label values, in the table's order."""
        return self._find(metric, labels, Counter) if self.is_on else _NO_COUNTER

    def gauge(self, metric: Metric, *labels: str) -> Gauge:
        """Returns the series of these label values, in the table's order."""
        return self._find(metric, labels, Gauge) if self.is_on else _NO_GAUGE

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """Returns the series of these label values, in the table's order."""
        if not self.is_on:
            return _NO_HISTOGRAM
        return self._find(metric, labels, Histogram, metric.buckets)

    def forget(self, metric: Metric, *labels: str) -> None:
        """Shows a series no more: what it is about is gone. Asked for again it begins anew."""
        self._families.get(metric, {}).pop(labels, None)

    def bound(self, label: str, value: str) -> str:
        """Returns what a label shows for a value."""
        names = self._bounded.get(label)
        return value if names is None else names.of(value)

    def value(self, metric: Metric, *labels: str) -> float:
        """Returns what a series shows now: of a histogram, how often it was observed."""
        found = self._families.get(metric, {}).get(labels)
        return (
            0.0 if found is None else next(v for s, _, v in found.samples() if s in ("", "_count"))
        )

    def _find(
        self, metric: Metric, labels: tuple[str, ...], kind: type[_S], *args: tuple[float, ...]
    ) -> _S:
        assert kind.__name__.lower() == metric.kind, f"{metric.name} is a {metric.kind}"
        pairs = zip(metric.labels, labels, strict=True)
        values = tuple([self.bound(label, value) for label, value in pairs])
        family = self._families.setdefault(metric, {})
        series = family.get(values)
        if series is None:
            series = family[values] = kind(*args)
        assert isinstance(series, kind)
        return series

    def render(self) -> str:
        """Returns all of it in Prometheus' text format. From any thread."""
        return "".join(
            _render(metric, series.copy())
            for metric, series in sorted(self._families.copy().items(), key=lambda f: f[0].name)
        )


def _render(metric: Metric, series: dict[tuple[str, ...], _Series]) -> str:
    lines = [f"# HELP {metric.name} {metric.words}\n# TYPE {metric.name} {metric.kind}\n"]
    for values, one in series.items():
        own = [f'{k}="{_escape(v)}"' for k, v in zip(metric.labels, values, strict=True)]
        for suffix, further, value in one.samples():
            labels = ",".join([*own, further] if further else own)
            lines.append(f"{metric.name}{suffix}{{{labels}}} {value!r}\n")
    return "".join(lines)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
