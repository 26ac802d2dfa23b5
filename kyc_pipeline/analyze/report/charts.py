"""The report's charts as Altair specifications, made from rows. Nothing here reads the warehouse.

Every chart takes the width of its container. Colours are names of the page's palette; the page's script
replaces them for light, dark and print. What a chart shows follows the parameter `shown`
(:attr:`Period.shown`), which the page's period filter sets: rows over time have a `unit` and a `date` (epoch
milliseconds), all others a `period`. Most charts are made once and then filled with data, which is quick.
Do not change a finished chart: it shares its parts with the cached one.
"""

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, Final

import altair as alt
from altair.utils.schemapi import disable_debug_mode

from kyc_pipeline.rules import PSI_LARGE, PSI_MODERATE

# Otherwise Altair validates each part of a chart, which takes a quarter of the time of a report. Browser
# tests draw every chart instead, because the specifications do not depend on the data.
disable_debug_mode()

Point = Mapping[str, Any]
Spec = dict[str, Any]

PASS, FAIL, OTHER, ACCENT, SECOND, CARD, INK = (
    f"palette-{name}" for name in ("pass", "fail", "other", "accent", "second", "card", "ink")
)
"""Placeholders; the page's script replaces them with the colours of the current theme."""

FAILURE_KINDS: Final = ("only this check", "with other checks", "verdict disagrees")
OUTCOMES: Final = ("verified", "not verified", "rejected", "without verdict")
QUANTILES: Final = ("p50", "p95", "p99")
PSI_LIMITS: Final = (("moderate", PSI_MODERATE), ("large", PSI_LARGE))

_BAR: Final = 0.86
"""Width of a bar, as a share of its day or week."""
_COUNT_LABEL: Final = "datum.value >= 10000 ? format(datum.value, '~s') : format(datum.value, ',')"
_LABEL_LIMIT: Final = alt.expr("containerSize()[0] < 500 ? 130 : 260")
_AXIS_TIME: Final = alt.Axis(
    title=None,
    values=alt.expr("shown.ticks"),
    grid=False,
    labelExpr="utcFormat(datum.value, shown.long ? '%b %Y' : '%-d %b')",
    labelOverlap=True,
    labelFlush=8,
)
_SCALE_TIME: Final = alt.Scale(type="utc", domain=[alt.expr("shown.from"), alt.expr("shown.to")], nice=False)
_TIME: Final = alt.X("date:T", scale=_SCALE_TIME, axis=_AXIS_TIME)
_WHEN: Final = alt.Tooltip("when:N", title="day or week from")


def _spec(chart: alt.Chart | alt.LayerChart | alt.FacetChart, height: int) -> Spec:
    """The finished chart, without data."""
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    return dict(chart.properties(width="container", height=height, autosize=fit).to_dict(validate=False))


def _filled(spec: Spec, shown: Point | None, **rows: Sequence[Point]) -> Spec:
    """The chart with what it shows at first, and its named data sets."""
    first = {"params": [{"name": "shown", "value": dict(shown)}]} if shown else {}
    return spec | first | {"datasets": {name: list(values) for name, values in rows.items()}}


def _counts(title: str | None = None) -> alt.Axis:
    """An axis of whole numbers."""
    return alt.Axis(title=title, tickMinStep=1, tickCount=4, labelExpr=_COUNT_LABEL)


def _over_time() -> alt.Chart:
    chart: alt.Chart = (
        alt.Chart(alt.NamedData("rows"))
        .transform_filter("datum.unit === shown.unit && datum.date >= shown.since")
        .transform_calculate(when="utcFormat(datum.date, '%-d %b %Y')")
    )
    return chart


def _height(rows: Sequence[Point], step: int) -> int:
    """Pixels for the period with the most bars; `rank` starts at 0."""
    return step * (1 + max(int(row["rank"]) for row in rows))


def _of_period() -> alt.Chart:
    return alt.Chart(alt.NamedData("rows")).transform_filter("datum.period === shown.key")


def _bars_apart(chart: alt.Chart) -> alt.Chart:
    """The rows whose interval is a separate bar: those of charts with few points, or without a neighbour."""
    return chart.transform_filter("!shown.dense || datum.alone")


def _points(chart: alt.Chart) -> alt.Chart:
    """Points, hollow for small samples. Charts with many points show only the line."""
    points: alt.Chart = chart.mark_point(color=ACCENT, filled=False, strokeWidth=1.6).encode(
        fill=alt.condition("datum.few", alt.value(CARD), alt.value(ACCENT)),
        size=alt.condition("shown.dense", alt.value(16), alt.value(38)),
        opacity=alt.condition("shown.dense && !datum.few && !datum.alone", alt.value(0), alt.value(1)),
    )
    return points


def rate_over_time(rows: Sequence[Point], shown: Point, n: str, lowest: float) -> Spec:
    """A rate with its interval: rows of rate, low, high, the count `n`, `few` and `alone`.

    The axis begins at the tenth below `lowest`. Days without data have a NULL rate, which breaks the line.
    """
    return _filled(_rate_over_time(n, int(lowest * 10) / 10 if lowest < 1 else 0.9), shown, rows=rows)


@cache
def _rate_over_time(n: str, start: float) -> Spec:
    base = _over_time()
    axis = alt.Axis(format=".0%", title=None, tickCount=5)
    scale = alt.Scale(domain=[start, 1], nice=False, zero=False)
    low, rate = alt.Y("low:Q", scale=scale, axis=axis), alt.Y("rate:Q", scale=scale, axis=axis)
    high = alt.Y2("high:Q")
    band = base.transform_filter("shown.dense").mark_area(color=ACCENT, opacity=0.2, clip=True)
    bars = _bars_apart(base).mark_rule(color=ACCENT, opacity=0.4, strokeWidth=3, clip=True)
    line = base.mark_line(color=ACCENT, strokeWidth=1.8)
    tooltip = [
        _WHEN,
        alt.Tooltip("rate:Q", format=".1%"),
        alt.Tooltip("low:Q", format=".1%", title="95% from"),
        alt.Tooltip("high:Q", format=".1%", title="to"),
        alt.Tooltip("n:Q", title=n, format=","),
    ]
    return _spec(
        alt.layer(
            band.encode(_TIME, low, high),
            bars.encode(_TIME, low, high),
            line.encode(_TIME, rate),
            _points(base.transform_filter("datum.rate !== null")).encode(_TIME, rate, tooltip=tooltip),
        ),
        200,
    )


def attribution(rows: Sequence[Point], shown: Point) -> Spec:
    """Stacked bars: rows of reason, rank, kind, position and verifications."""
    base = _of_period().encode(
        alt.Y(
            "reason:N",
            sort=alt.EncodingSortField(field="rank", op="min"),
            axis=alt.Axis(title=None, labelLimit=_LABEL_LIMIT, ticks=False, domain=False),
        )
    )
    bars = base.mark_bar(size=22).encode(
        alt.X("verifications:Q", stack=True, axis=_counts("declined verifications")),
        alt.Color(
            "kind:N",
            scale=alt.Scale(domain=list(FAILURE_KINDS), range=[FAIL, SECOND, OTHER]),
            legend=alt.Legend(orient="top", title=None, columns=3, symbolType="square"),
        ),
        order=alt.Order("position:O"),
        tooltip=["reason:N", "kind:N", alt.Tooltip("verifications:Q", format=",")],
    )
    return _filled(_spec(bars, _height(rows, 32)), shown, rows=rows)


def histogram(rows: Sequence[Point], shown: Point) -> Spec:
    """Confidences of passed checks point up, of failed checks down, each as a share of its status.

    Rows of side (PASS or FAIL), bin_low, bin_high, checks, share, and `signed`: the share, negative for FAIL.
    """
    return _filled(_histogram(), shown, rows=rows, zero=[{}])


@cache
def _histogram() -> Spec:
    bars = (
        _of_period()
        .mark_bar(binSpacing=0.4)
        .encode(
            alt.X(
                "bin_low:Q",
                bin="binned",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(title="confidence", tickCount=6, format=".1f", grid=False),
            ),
            alt.X2("bin_high:Q"),
            alt.Y(
                "signed:Q",
                stack=None,
                axis=alt.Axis(title=None, tickCount=5, labelExpr="format(abs(datum.value), '.1~%')"),
            ),
            alt.Y2(datum=0),
            alt.Color("side:N", legend=None, scale=alt.Scale(domain=["PASS", "FAIL"], range=[PASS, FAIL])),
            tooltip=[
                alt.Tooltip("side:N", title="status"),
                alt.Tooltip("bin_low:Q", title="from", format=".2f"),
                alt.Tooltip("bin_high:Q", title="to", format=".2f"),
                alt.Tooltip("share:Q", format=".1%", title="share of the status"),
                alt.Tooltip("checks:Q", format=","),
            ],
        )
    )
    zero = alt.Chart(alt.NamedData("zero")).mark_rule(color=OTHER).encode(y=alt.datum(0))
    return _spec(alt.layer(bars, zero), 190)


def quantiles_over_time(rows: Sequence[Point], shown: Point, lowest: float) -> Spec:
    """Median, middle half and middle nine tenths: rows of p05, p25, p50, p75, p95, `few` and `alone`."""
    return _filled(_quantiles_over_time(min(int(lowest * 10) / 10, 0.9)), shown, rows=rows)


@cache
def _quantiles_over_time(start: float) -> Spec:
    base = _over_time()
    axis = alt.Axis(format=".2~f", title=None, tickCount=5)
    scale = alt.Scale(domain=[start, 1], nice=False, zero=False)
    layers: list[alt.Chart] = []
    for low, high, opacity, width in (("p05", "p95", 0.16, 2), ("p25", "p75", 0.34, 6)):
        ends = alt.Y(f"{low}:Q", scale=scale, axis=axis), alt.Y2(f"{high}:Q")
        layers += [
            base.transform_filter("shown.dense")
            .mark_area(color=ACCENT, opacity=opacity, clip=True)
            .encode(_TIME, *ends),
            _bars_apart(base)
            .mark_rule(color=ACCENT, opacity=2 * opacity, strokeWidth=width, clip=True)
            .encode(_TIME, *ends),
        ]
    median = alt.Y("p50:Q", scale=scale, axis=axis)
    tooltip = [_WHEN, *(alt.Tooltip(f"{q}:Q", format=".3f") for q in ("p05", "p25", "p50", "p75", "p95"))]
    layers += [
        base.mark_line(color=ACCENT, strokeWidth=1.8).encode(_TIME, median),
        _points(base.transform_filter("datum.p50 !== null")).encode(
            _TIME, median, tooltip=[*tooltip, alt.Tooltip("n:Q", title="checks", format=",")]
        ),
    ]
    return _spec(alt.layer(*layers), 180)


def drift(rows: Sequence[Point], shown: Point) -> Spec:
    """PSI and its noise floor over time: rows of psi, floor, ks, level and `alone`."""
    largest = max((row["psi"] for row in rows if row["psi"] is not None), default=0.0)
    limits = [{"limit": name, "psi": psi} for name, psi in PSI_LIMITS]
    return _filled(_drift(max(0.3, 1.05 * largest)), shown, rows=rows, limits=limits)


@lru_cache(maxsize=16)
def _drift(top: float) -> Spec:
    base = _over_time()
    scale = alt.Scale(domain=[0, top], nice=False)
    axis = alt.Axis(title=None, tickCount=4, format="~g")
    levels = alt.Chart(alt.NamedData("limits")).encode(alt.Y("psi:Q", scale=scale, axis=axis))
    limits = levels.mark_rule(color=FAIL, strokeDash=[4, 4], opacity=0.7)
    names = levels.mark_text(color=FAIL, align="left", baseline="bottom", dx=3, dy=-2, fontSize=11).encode(
        x=alt.value(0), text="limit:N"
    )
    noise = alt.Y("floor:Q", scale=scale, axis=axis)
    wide = alt.expr("width / shown.points")
    floor = alt.layer(
        base.transform_filter("shown.dense").mark_area(color=OTHER, opacity=0.3).encode(_TIME, noise),
        _bars_apart(base).mark_bar(color=OTHER, opacity=0.3, width=wide).encode(_TIME, noise),
    )
    psi = alt.Y("psi:Q", scale=scale, axis=axis)
    line = base.mark_line(color=ACCENT, strokeWidth=1.8).encode(_TIME, psi)
    dots = (
        base.transform_filter("datum.psi !== null")
        .mark_point(filled=True, opacity=1)
        .encode(
            _TIME,
            psi,
            color=alt.Color(
                "level:N",
                legend=None,
                scale=alt.Scale(domain=["none", "moderate", "large"], range=[ACCENT, SECOND, FAIL]),
            ),
            size=alt.condition("shown.dense", alt.value(14), alt.value(38)),
            tooltip=[
                _WHEN,
                alt.Tooltip("psi:Q", format=".3f", title="PSI"),
                alt.Tooltip("floor:Q", format=".3f", title="noise floor"),
                alt.Tooltip("ks:Q", format=".3f", title="KS"),
                "level:N",
            ],
        )
    )
    return _spec(alt.layer(floor, line, limits, names, dots), 180)


_THRESHOLD: Final = alt.X(
    "threshold:Q",
    scale=alt.Scale(domain=[0, 1]),
    axis=alt.Axis(title="threshold", tickCount=10, format=".1f"),
)


@cache
def threshold_rate() -> Spec:
    """Simulated pass rate over the threshold. The page's script fills the data sets.

    `curve`: threshold, rate, low, high; `chosen`: one such row and `recorded`, the recorded rate.
    """
    axis = alt.Axis(format=".0%", title=None, tickCount=5)
    scale = alt.Scale(domain=[0, 1])
    curve = alt.Chart(alt.NamedData("curve"))
    rate = alt.Y("rate:Q", scale=scale, axis=axis)
    band = curve.mark_area(color=ACCENT, opacity=0.2).encode(
        _THRESHOLD, alt.Y("low:Q", scale=scale, axis=axis), alt.Y2("high:Q")
    )
    line = curve.mark_line(color=ACCENT, strokeWidth=2).encode(
        _THRESHOLD,
        rate,
        tooltip=[
            alt.Tooltip("threshold:Q", format=".2f"),
            alt.Tooltip("rate:Q", format=".1%", title="would pass"),
            alt.Tooltip("low:Q", format=".1%", title="95% from"),
            alt.Tooltip("high:Q", format=".1%", title="to"),
        ],
    )
    chosen = alt.Chart(alt.NamedData("chosen"))
    recorded = chosen.mark_rule(color=OTHER, strokeDash=[5, 4], strokeWidth=1.5).encode(
        alt.Y("recorded:Q", scale=scale, axis=axis)
    )
    layers = alt.layer(
        band,
        line,
        recorded,
        chosen.mark_rule(color=FAIL, strokeWidth=2).encode(_THRESHOLD),
        chosen.mark_point(color=FAIL, filled=True, size=80, opacity=1).encode(_THRESHOLD, rate),
    )
    return _filled(_spec(layers, 230), None, curve=[], chosen=[])


@cache
def threshold_flips() -> Spec:
    """Decisions that would change, over the threshold: `curve` and `chosen` with to_fail and to_pass."""
    kinds = {"to_fail": "passed, would fail", "to_pass": "failed, would pass"}
    changes = (
        alt.Chart(alt.NamedData("curve"))
        .transform_fold(list(kinds), as_=["kind", "checks"])
        .mark_line(strokeWidth=2)
        .encode(
            _THRESHOLD,
            alt.Y("checks:Q", axis=_counts()),
            alt.Color(
                "kind:N",
                scale=alt.Scale(domain=list(kinds), range=[FAIL, PASS]),
                legend=alt.Legend(
                    orient="top",
                    title=None,
                    labelLimit=200,
                    symbolType="stroke",
                    labelExpr=f"datum.label === 'to_fail' ? '{kinds['to_fail']}' : '{kinds['to_pass']}'",
                ),
            ),
            tooltip=[alt.Tooltip("threshold:Q", format=".2f"), "kind:N", alt.Tooltip("checks:Q", format=",")],
        )
    )
    chosen = alt.Chart(alt.NamedData("chosen"))
    marker = chosen.mark_rule(color=ACCENT, strokeWidth=2).encode(_THRESHOLD)
    return _filled(_spec(alt.layer(changes, marker), 230), None, curve=[], chosen=[])


def funnel(rows: Sequence[Point], shown: Point) -> Spec:
    """Horizontal bars: rows of stage, rank, submissions, label and kind (`kept` or `lost`)."""
    return _filled(_funnel(_height(rows, 34)), shown, rows=rows)


@cache
def _funnel(height: int) -> Spec:
    base = _of_period().encode(
        alt.Y(
            "stage:N",
            sort=alt.EncodingSortField(field="rank", op="min"),
            axis=alt.Axis(title=None, labelLimit=_LABEL_LIMIT, ticks=False, domain=False),
        ),
        tooltip=[
            "stage:N",
            alt.Tooltip("submissions:Q", format=","),
            alt.Tooltip("label:N", title="of received"),
        ],
    )
    # Room for the label beside the longest bar.
    room = base.transform_joinaggregate(most="max(submissions)").transform_calculate(room="datum.most * 1.45")
    axis = alt.Axis(title=None, labels=False, ticks=False, grid=False, domain=False)
    bars = base.mark_bar(size=25).encode(
        alt.X("submissions:Q", axis=axis),
        alt.Color("kind:N", scale=alt.Scale(domain=["kept", "lost"], range=[ACCENT, FAIL]), legend=None),
    )
    space = room.mark_point(opacity=0).encode(alt.X("room:Q", axis=axis))
    labels = base.mark_text(align="left", dx=5, color=INK).encode(
        alt.X("submissions:Q", axis=axis), text="label:N"
    )
    return _spec(alt.layer(space, bars, labels), height)


def _stacked(rows: Sequence[Point], shown: Point, y: str, kinds: Mapping[str, str], axis: alt.Axis) -> Spec:
    """Stacked bars for each day or week: rows of `y` and kind."""
    bars = (
        _over_time()
        .mark_bar(width=alt.expr(f"max(1, {_BAR} * width / shown.points)"))
        .encode(
            _TIME,
            alt.Y(f"{y}:Q", stack=True, axis=axis),
            alt.Color(
                "kind:N",
                scale=alt.Scale(domain=list(kinds), range=list(kinds.values())),
                legend=alt.Legend(orient="top", title=None, columns=2, symbolType="square")
                if len(kinds) > 1
                else None,
            ),
            order=alt.Order("position:O"),
            tooltip=[_WHEN, "kind:N", alt.Tooltip(f"{y}:Q", format=",~r")],
        )
    )
    return _filled(_spec(bars, 200), shown, rows=rows)


def volume(rows: Sequence[Point], shown: Point) -> Spec:
    """Outcomes of the submissions over time: rows of submissions, kind and position."""
    colours = dict(zip(OUTCOMES, (PASS, FAIL, OTHER, SECOND), strict=True))
    return _stacked(rows, shown, "submissions", colours, _counts())


def calls(rows: Sequence[Point], shown: Point) -> Spec:
    """First calls and retries over time: rows of calls, kind and position."""
    colours = {"first calls": ACCENT, "retries": FAIL}
    return _stacked(rows, shown, "calls", colours, _counts())


def cost(rows: Sequence[Point], shown: Point) -> Spec:
    """Estimated cost over time: rows of cost, kind and position."""
    return _stacked(
        rows, shown, "cost", {"estimated cost": ACCENT}, alt.Axis(title=None, tickCount=4, format="~s")
    )


def companies(rows: Sequence[Point], shown: Point) -> Spec:
    """Dots with intervals: rows of company, rank, rate, low, high, n, `few` and `overall`."""
    return _filled(_companies(_height(rows, 26)), shown, rows=rows)


@cache
def _companies(height: int) -> Spec:
    base = _of_period()
    y = alt.Y(
        "company:N",
        sort=alt.EncodingSortField(field="rank", op="min"),
        axis=alt.Axis(title=None, labelLimit=_LABEL_LIMIT, ticks=False, domain=False),
    )
    scale = alt.Scale(domain=[0, 1])
    axis = alt.Axis(format=".0%", title=None, tickCount=5)
    rate = alt.X("rate:Q", scale=scale, axis=axis)
    tooltip = [
        alt.Tooltip("company:N"),
        alt.Tooltip("rate:Q", format=".1%", title="verified"),
        alt.Tooltip("low:Q", format=".1%", title="95% from"),
        alt.Tooltip("high:Q", format=".1%", title="to"),
        alt.Tooltip("n:Q", title="verifications", format=","),
    ]
    overall = (
        base.transform_filter("datum.rank === 0")
        .mark_rule(color=OTHER, strokeDash=[5, 4], strokeWidth=1.5)
        .encode(alt.X("overall:Q", scale=scale, axis=axis))
    )
    bars = base.mark_rule(color=ACCENT, strokeWidth=4, opacity=0.4).encode(
        y, alt.X("low:Q", scale=scale, axis=axis), alt.X2("high:Q")
    )
    dots = base.mark_point(color=ACCENT, strokeWidth=1.6, opacity=1, size=60).encode(
        y, rate, fill=alt.condition("datum.few", alt.value(CARD), alt.value(ACCENT)), tooltip=tooltip
    )
    return _spec(alt.layer(overall, bars, dots), height)


def latency(rows: Sequence[Point], shown: Point) -> Spec:
    """Quantiles of the response time: rows of quantile and ms."""
    return _filled(_latency(), shown, rows=rows)


@cache
def _latency() -> Spec:
    base = _over_time()
    colour = alt.Color(
        "quantile:N",
        scale=alt.Scale(domain=list(QUANTILES), range=[ACCENT, SECOND, FAIL]),
        legend=alt.Legend(orient="top", title=None, symbolType="stroke"),
    )
    ms = alt.Y("ms:Q", axis=alt.Axis(title=None, tickCount=5, labelExpr=_COUNT_LABEL))
    line = base.mark_line(strokeWidth=1.8).encode(_TIME, ms, colour)
    dots = (
        base.transform_filter("datum.ms !== null")
        .mark_point(filled=True)
        .encode(
            _TIME,
            ms,
            colour,
            size=alt.condition("shown.dense", alt.value(16), alt.value(30)),
            opacity=alt.condition("shown.dense && !datum.alone", alt.value(0), alt.value(1)),
            tooltip=[_WHEN, "quantile:N", alt.Tooltip("ms:Q", format=",.0f")],
        )
    )
    return _spec(alt.layer(line, dots), 200)
