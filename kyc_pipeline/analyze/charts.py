"""The report's charts as Altair specifications. Data come in as rows, nothing here reads the warehouse.

Every chart takes the width of its container. Colours are names of the page's own palette, which the page's
script puts in for light and dark. Time charts have a parameter `since` (epoch milliseconds), which the page's
period filter sets.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import altair as alt

Row = Mapping[str, Any]

PASS, FAIL, OTHER, ACCENT, SECOND, MUTED = (
    "palette-pass",
    "palette-fail",
    "palette-other",
    "palette-accent",
    "palette-second",
    "palette-muted",
)
"""Placeholders that the page's script replaces by colours of the current theme."""

STATUS_COLOURS: Final = alt.Scale(
    domain=["PASS", "FAIL", "REVIEW", "NOT_EVALUATED", "ERROR", "PENDING", "UNKNOWN"],
    range=[PASS, FAIL, SECOND, OTHER, MUTED, ACCENT, OTHER],
)
FAILURE_KINDS: Final = ("it alone", "with other checks", "verdict disagrees")
_PERCENT: Final = alt.Axis(format=".0%", title=None, tickCount=5)
_TIME: Final = alt.X(
    "date:T",
    scale=alt.Scale(type="utc"),
    axis=alt.Axis(title=None, format="%d %b", tickCount=6, labelOverlap=True, labelFlush=True),
)


def _data(rows: Sequence[Row]) -> alt.InlineData:
    return alt.InlineData(values=[dict(row) for row in rows])


def _spec(chart: alt.Chart | alt.LayerChart | alt.FacetChart, height: int) -> dict[str, Any]:
    sized = chart.properties(width="container", height=height)
    return dict(sized.to_dict())


def _over_time(rows: Sequence[Row]) -> alt.Chart:
    since = alt.param(name="since", value=0)
    return alt.Chart(_data(rows)).add_params(since).transform_filter("toDate(datum.date) >= since")


def rate_over_time(rows: Sequence[Row], n: str) -> dict[str, Any]:
    """A rate with its interval: rows of date, rate, low, high and the count `n`."""
    base = _over_time(rows)
    tooltip = [
        alt.Tooltip("day:N", title="from"),
        alt.Tooltip("rate:Q", format=".1%"),
        alt.Tooltip("low:Q", format=".1%", title="95 % from"),
        alt.Tooltip("high:Q", format=".1%", title="to"),
        alt.Tooltip("n:Q", title=n),
    ]
    lowest = min((row["low"] for row in rows if row["low"] is not None), default=0)
    scale = alt.Scale(domain=[max(0.0, int(lowest * 10) / 10), 1], nice=False)
    band = base.mark_area(color=ACCENT, opacity=0.22, clip=True).encode(
        _TIME, alt.Y("low:Q", scale=scale, axis=_PERCENT), alt.Y2("high:Q")
    )
    line = base.mark_line(
        color=ACCENT, strokeWidth=2, clip=True, point={"color": ACCENT, "size": 18, "filled": True}
    ).encode(_TIME, alt.Y("rate:Q", scale=scale, axis=_PERCENT), tooltip=tooltip)
    return _spec(alt.layer(band, line), 200)


def attribution(rows: Sequence[Row]) -> dict[str, Any]:
    """Stacked bars: rows of reason, kind and verifications."""
    chart = (
        alt.Chart(_data(rows))
        .mark_bar()
        .encode(
            alt.Y("reason:N", sort=None, axis=alt.Axis(title=None, labelLimit=170)),
            alt.X("verifications:Q", axis=alt.Axis(title="verifications", tickMinStep=1, tickCount=5)),
            alt.Color(
                "kind:N",
                scale=alt.Scale(
                    domain=list(FAILURE_KINDS),
                    range=[FAIL, SECOND, OTHER],
                ),
                legend=alt.Legend(orient="top", title=None, columns=1, labelLimit=300),
            ),
            order=alt.Order("position:O"),
            tooltip=["reason:N", "kind:N", "verifications:Q"],
        )
    )
    return _spec(chart, 34 * max(1, len({row["reason"] for row in rows})))


def histogram(rows: Sequence[Row]) -> dict[str, Any]:
    """Confidences by status: rows of bin_low, bin_high, status and checks."""
    chart = (
        alt.Chart(_data(rows))
        .mark_bar(binSpacing=0.5)
        .encode(
            alt.X(
                "bin_low:Q",
                bin="binned",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(title="confidence", tickCount=6, format=".1f", grid=False),
            ),
            alt.X2("bin_high:Q"),
            alt.Y("checks:Q", stack=True, axis=alt.Axis(title=None, tickCount=4, format="~s")),
            alt.Color("status:N", scale=STATUS_COLOURS, legend=None),
            tooltip=["status:N", "bin_low:Q", "bin_high:Q", "checks:Q"],
        )
    )
    return _spec(chart, 170)


def drift(rows: Sequence[Row]) -> dict[str, Any]:
    """PSI and its noise floor over time: rows of date, psi, floor and level."""
    base = _over_time(rows)
    top = max(0.3, *(row["psi"] for row in rows if row["psi"] is not None), 0.3)
    scale = alt.Scale(domain=[0, min(top, 1.0)], clamp=True)
    axis = alt.Axis(title="PSI", tickCount=4)
    limits = (
        alt.Chart(alt.InlineData(values=[{"psi": 0.1}, {"psi": 0.25}]))
        .mark_rule(color=FAIL, strokeDash=[4, 4], opacity=0.7)
        .encode(alt.Y("psi:Q", scale=scale))
    )
    floor = base.mark_area(color=OTHER, opacity=0.35).encode(_TIME, alt.Y("floor:Q", scale=scale, axis=axis))
    line = base.mark_line(color=ACCENT, strokeWidth=2, point={"color": ACCENT, "size": 18}).encode(
        _TIME,
        alt.Y("psi:Q", scale=scale, axis=axis),
        tooltip=[
            alt.Tooltip("day:N", title="day"),
            alt.Tooltip("psi:Q", format=".3f"),
            alt.Tooltip("floor:Q", format=".3f", title="noise floor"),
            alt.Tooltip("ks:Q", format=".3f"),
            "level:N",
        ],
    )
    return _spec(alt.layer(floor, line, limits), 170)


def thresholds(rows: Sequence[Row], start: float) -> dict[str, Any]:
    """Simulated pass rate over the threshold; the parameters `chosen` and `check` are set by the page."""
    chosen = alt.param(name="chosen", value=start)
    check = alt.param(name="check", value=rows[0]["check"] if rows else "")
    base = alt.Chart(_data(rows)).add_params(chosen, check).transform_filter("datum.check === check")
    lines = (
        base.transform_fold(["rate", "rate_null_as_fail"], as_=["rule", "share"])
        .mark_line(strokeWidth=2)
        .encode(
            alt.X(
                "threshold:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(title="threshold", tickCount=10)
            ),
            alt.Y("share:Q", scale=alt.Scale(domain=[0, 1]), axis=_PERCENT),
            alt.StrokeDash("rule:N", legend=None),
            alt.Color(
                "rule:N",
                scale=alt.Scale(domain=["rate", "rate_null_as_fail"], range=[ACCENT, SECOND]),
                legend=alt.Legend(
                    orient="top",
                    title=None,
                    labelExpr="datum.label === 'rate' ? 'of checks with a confidence' : 'of all checks'",
                    labelLimit=240,
                ),
            ),
        )
    )
    marker = (
        base.transform_filter("abs(datum.threshold - chosen) < 0.001")
        .mark_rule(color=FAIL, strokeWidth=2)
        .encode(alt.X("threshold:Q"))
    )
    return _spec(alt.layer(lines, marker), 240)


def funnel(rows: Sequence[Row]) -> dict[str, Any]:
    """Horizontal bars: rows of stage, submissions and kind (`kept` or `lost`)."""
    base = alt.Chart(_data(rows)).encode(
        alt.Y("stage:N", sort=None, axis=alt.Axis(title=None, labelLimit=150)),
        alt.X(
            "submissions:Q",
            # Room for the label beside the longest bar.
            scale=alt.Scale(domain=[0, 1.25 * max(row["submissions"] for row in rows)], nice=False),
            axis=alt.Axis(title=None, tickMinStep=1, format="~s", tickCount=5),
        ),
        tooltip=["stage:N", "submissions:Q"],
    )
    bars = base.mark_bar().encode(
        alt.Color("kind:N", scale=alt.Scale(domain=["kept", "lost"], range=[ACCENT, FAIL]), legend=None)
    )
    labels = base.mark_text(align="left", dx=4).encode(text=alt.Text("submissions:Q", format=","))
    return _spec(alt.layer(bars, labels), 26 * len(rows))


def companies(rows: Sequence[Row]) -> dict[str, Any]:
    """Dots with intervals: rows of company, rate, low, high and n."""
    base = alt.Chart(_data(rows)).encode(
        alt.Y("company:N", sort=None, axis=alt.Axis(title=None, labelLimit=150)),
        tooltip=[
            "company:N",
            alt.Tooltip("rate:Q", format=".1%"),
            alt.Tooltip("low:Q", format=".1%", title="95 % from"),
            alt.Tooltip("high:Q", format=".1%", title="to"),
            alt.Tooltip("n:Q", title="verifications"),
        ],
    )
    scale = alt.Scale(domain=[0, 1])
    bars = base.mark_rule(color=ACCENT, strokeWidth=3, opacity=0.45).encode(
        alt.X("low:Q", scale=scale, axis=alt.Axis(format=".0%", title="verified rate", tickCount=5)),
        alt.X2("high:Q"),
    )
    dots = base.mark_point(color=ACCENT, filled=True, size=70).encode(alt.X("rate:Q", scale=scale))
    return _spec(alt.layer(bars, dots), 26 * max(1, len(rows)))


def latency(rows: Sequence[Row]) -> dict[str, Any]:
    """Quantiles of the answer time: rows of date, quantile and ms."""
    line = (
        _over_time(rows)
        .mark_line(strokeWidth=2)
        .encode(
            _TIME,
            alt.Y("ms:Q", axis=alt.Axis(title="ms", format="~s", tickCount=5)),
            alt.Color(
                "quantile:N",
                scale=alt.Scale(domain=["p50", "p95", "p99"], range=[ACCENT, SECOND, FAIL]),
                legend=alt.Legend(orient="top", title=None),
            ),
            alt.StrokeDash("quantile:N", legend=None),
            tooltip=["day:N", "quantile:N", alt.Tooltip("ms:Q", format=",.0f")],
        )
    )
    return _spec(line, 200)


def calls(rows: Sequence[Row]) -> dict[str, Any]:
    """First calls and retries over time: rows of date, kind and calls."""
    bars = (
        _over_time(rows)
        .mark_area(line=False, interpolate="step-after", opacity=0.85)
        .encode(
            _TIME,
            alt.Y("calls:Q", stack=True, axis=alt.Axis(title=None, format="~s", tickMinStep=1, tickCount=5)),
            alt.Color(
                "kind:N",
                scale=alt.Scale(domain=["first calls", "retries"], range=[ACCENT, FAIL]),
                legend=alt.Legend(orient="top", title=None),
            ),
            tooltip=["day:N", "kind:N", "calls:Q"],
        )
    )
    return _spec(bars, 200)
