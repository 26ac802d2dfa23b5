"""The shared macros against the vectors of the domain notes and against scipy."""

import math
from collections.abc import Iterator

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from kyc_pipeline.analyze.sql_models import macros_sql
from tests.effort import tries


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute(macros_sql())
        yield connection


def value(connection: duckdb.DuckDBPyConnection, sql: str, *parameters: float | None) -> float | None:
    value: float | None = connection.execute(f"SELECT {sql}", list(parameters)).fetchall()[0][0]
    return value


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 10, 0, 0.277533),
        (9, 10, 0.595850, 0.982124),
        (10, 10, 0.722467, 1),
        (1, 1, 0.206549, 1),
        (47, 50, 0.837829, 0.979385),
        (950, 1000, 0.934686, 0.961870),
    ],
)
def test_wilson(connection: duckdb.DuckDBPyConnection, k: int, n: int, low: float, high: float) -> None:
    assert value(connection, "wilson_low($1, $2)", k, n) == pytest.approx(low, abs=5e-7)
    assert value(connection, "wilson_high($1, $2)", k, n) == pytest.approx(high, abs=5e-7)


@pytest.mark.parametrize(
    "macro", ["wilson_low", "wilson_high", "agresti_coull_low", "agresti_coull_high", "ratio"]
)
@pytest.mark.parametrize("arguments", ["0, 0", "NULL, 5", "5, NULL", "NULL, NULL"])
def test_rates_without_trials_are_null(
    connection: duckdb.DuckDBPyConnection, macro: str, arguments: str
) -> None:
    assert value(connection, f"{macro}({arguments})") is None


@given(n=st.integers(1, 10**9), share=st.floats(0, 1))
@settings(max_examples=tries(100), deadline=None)
def test_wilson_contains_the_rate_and_stays_within_bounds(
    connection: duckdb.DuckDBPyConnection, n: int, share: float
) -> None:
    k = round(n * share)
    ((low, high),) = connection.execute("SELECT wilson_low($1, $2), wilson_high($1, $2)", [k, n]).fetchall()
    assert 0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1


@pytest.mark.parametrize("n", [1, 2, 30, 999])
def test_agresti_coull_with_exact_ends(connection: duckdb.DuckDBPyConnection, n: int) -> None:
    found = connection.execute(
        "SELECT agresti_coull_low(k, $1), agresti_coull_high(k, $1) FROM range($1 + 1) AS t(k) ORDER BY k",
        [n],
    ).fetchall()
    for k, bounds in enumerate(found):
        method = "beta" if k in (0, n) else "agresti_coull"
        assert bounds == pytest.approx(proportion_confint(k, n, method=method), abs=1e-7)
    assert len(found) == n + 1


@pytest.mark.parametrize(("n", "least", "mean"), [(30, 0.93, 0.98), (300, 0.94, 0.975), (2000, 0.94, 0.965)])
def test_agresti_coull_covers_any_rate(
    connection: duckdb.DuckDBPyConnection, n: int, least: float, mean: float
) -> None:
    """The chance that the interval has the rate, exactly: at least 94% where there are enough results.

    The mean is over all rates with 2 expected errors or more; where there are few, no interval gets nearer.
    """
    low, high = zip(
        *connection.execute(
            "SELECT agresti_coull_low(k, $1), agresti_coull_high(k, $1) FROM range($1 + 1) AS t(k)", [n]
        ).fetchall(),
        strict=True,
    )
    covered = [
        float(sum(stats.binom.pmf(k, n, rate) for k in range(n + 1) if low[k] <= rate <= high[k]))
        for rate in (step / 400 for step in range(1, 200))
    ]
    assert min(covered) >= least
    common = covered[max(0, 800 // n - 1) :]
    assert 0.95 <= sum(common) / len(common) <= mean


@pytest.mark.parametrize("counts", [(45, 50, 40, 50), (0, 10, 10, 10), (1, 1, 0, 1), (900, 1000, 950, 1000)])
def test_newcombe(connection: duckdb.DuckDBPyConnection, counts: tuple[int, int, int, int]) -> None:
    low, high = confint_proportions_2indep(*counts, method="newcomb", compare="diff")
    assert value(connection, "newcombe_low($1, $2, $3, $4)", *counts) == pytest.approx(low, abs=1e-6)
    assert value(connection, "newcombe_high($1, $2, $3, $4)", *counts) == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize("arguments", ["0, 0, 1, 2", "1, 2, 0, 0", "1, 2, NULL, NULL"])
def test_newcombe_without_trials_is_null(connection: duckdb.DuckDBPyConnection, arguments: str) -> None:
    assert value(connection, f"newcombe_low({arguments})") is None
    assert value(connection, f"newcombe_high({arguments})") is None


@pytest.mark.parametrize(("n", "low"), [(29, True), (30, False), (None, None)])
def test_low_n(connection: duckdb.DuckDBPyConnection, n: int | None, low: bool | None) -> None:
    assert value(connection, "is_low_n($1)", n) is low


@pytest.mark.parametrize(
    ("day", "recent"), [("2024-09-02", False), ("2024-09-03", True), ("2024-09-30", True)]
)
def test_recent_days(connection: duckdb.DuckDBPyConnection, day: str, recent: bool) -> None:
    assert value(connection, f"is_recent(DATE '{day}', DATE '2024-09-30')") is recent


def test_psi_and_jensen_shannon(connection: duckdb.DuckDBPyConnection) -> None:
    bins = "(VALUES (0.1, 0.2), (0.2, 0.2), (0.4, 0.3), (0.3, 0.3)) AS t(p, q)"
    assert value(connection, f"sum(psi_term(p, q)) FROM {bins}") == pytest.approx(0.0980829, abs=5e-8)
    assert value(connection, f"sum(js_term(p, q)) FROM {bins}") == pytest.approx(0.0174258, abs=5e-8)
    assert value(connection, f"sqrt(sum(js_term(p, q))) FROM {bins}") == pytest.approx(0.1320067, abs=5e-8)


@pytest.mark.parametrize("scale", [0.01, 0.05, 0.2, 0.5, 1.0, 1.17, 1.18, 1.19, 1.5, 2.0, 4.0])
def test_kolmogorov_series(connection: duckdb.DuckDBPyConnection, scale: float) -> None:
    assert value(connection, "kolmogorov_q($1)", scale) == pytest.approx(
        float(stats.kstwobign.sf(scale)), abs=1e-12
    )


def test_ks_p_value_of_the_vector(connection: duckdb.DuckDBPyConnection) -> None:
    expected = stats.kstwobign.sf(0.4 * math.sqrt(25 / 10))
    assert value(connection, "ks_p(0.4, 5, 5)") == pytest.approx(float(expected), abs=1e-12)
    assert value(connection, "ks_p(NULL, 0, 0)") is None


@pytest.mark.parametrize(("n", "m", "error"), [(5, 6, 0.2), (200, 200, 0.05), (200, 201, 0.05)])
def test_ks_p_values_are_as_exact_as_the_dictionary_says(
    connection: duckdb.DuckDBPyConnection, n: int, m: int, error: float
) -> None:
    worst = 0.0
    for hundredth in range(2, 100, 2):
        shifted = [(place / m + hundredth / 100) * n - 0.01 for place in range(m)]
        exact = stats.ks_2samp(range(n), shifted, method="exact")
        p = value(connection, "ks_p($1, $2, $3)", float(exact.statistic), n, m)
        assert p is not None
        worst = max(worst, abs(p - exact.pvalue))
    assert worst < error


@pytest.mark.parametrize("freedom", [2, 5, 9, 30])
def test_the_gamma_quantile_of_moments_is_close_to_that_of_chi_squared(
    connection: duckdb.DuckDBPyConnection, freedom: int
) -> None:
    moments = (3 + freedom, 2 * freedom, 8 * freedom)  # shifted by 3
    found = value(connection, "gamma_p99($1, $2, $3)", *moments)
    assert found == pytest.approx(3 + stats.chi2.ppf(0.99, freedom), rel=2e-3)


@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        ((1, 4, 0), 1 + 2 * stats.norm.ppf(0.99)),
        ((1, 4, -5), 1 + 2 * stats.norm.ppf(0.99)),
        ((1, 0, 0), 1),
        ((1, -1e-18, 0), 1),
    ],
)
def test_the_gamma_quantile_without_skewness_or_variance(
    connection: duckdb.DuckDBPyConnection, moments: tuple[float, float, float], expected: float
) -> None:
    assert value(connection, "gamma_p99($1, $2, $3)", *moments) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (40, 1 / 29), (900, 0.03)])
def test_binomial_probabilities(connection: duckdb.DuckDBPyConnection, n: int, p: float) -> None:
    found = [value(connection, "binomial_probability($1, $2, $3)", k, n, p) for k in range(min(n, 80) + 1)]
    assert found == pytest.approx(list(stats.binom.pmf(range(len(found)), n, p)), rel=1e-9)


@given(x=st.floats(0, 1))
@settings(max_examples=tries(300), deadline=None)
def test_hundredths_are_the_largest_edge_reached(connection: duckdb.DuckDBPyConnection, x: float) -> None:
    step = value(connection, "hundredths($1)", x)
    assert step is not None
    assert step / 100 <= x
    assert step == 100 or x < (step + 1) / 100


def test_every_edge_is_reached(connection: duckdb.DuckDBPyConnection) -> None:
    assert (
        connection.execute("SELECT i FROM range(101) AS t(i) WHERE hundredths(i / 100) <> i").fetchall() == []
    )
