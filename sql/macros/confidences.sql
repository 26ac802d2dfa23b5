-- noqa: disable=capitalisation.types, layout.indent
-- Macros that only the models need: temporary, so that the published warehouse does not have them.

-- Aggregate: the quantile p of n values, interpolated as in `quantile_cont`, from the distinct values and
-- their cumulative counts. p is a DECIMAL, so that p * (n - 1) is exact.
CREATE TEMP MACRO quantile_of_counts(value, up_to, n, p) AS
    min(value) FILTER (WHERE up_to > floor(p * (n - 1)))
    + (max(p * (n - 1)) - floor(max(p * (n - 1))))::DOUBLE * (
        min(value) FILTER (WHERE up_to > ceil(p * (n - 1)))
        - min(value) FILTER (WHERE up_to > floor(p * (n - 1)))
    );

-- Whether a bucket of `checks` values, with the cumulative count `up_to`, holds one of the two values between
-- which the quantile p of n values is interpolated.
CREATE TEMP MACRO has_quantile(checks, up_to, n, p) AS
    up_to > floor(p * (n - 1)) AND up_to - checks <= ceil(p * (n - 1));

-- x in [0, 1] rounded to thousandths, 0 to 1000: buckets that keep the order of the values.
CREATE TEMP MACRO thousandths(x) AS (x * 1000)::INTEGER;

-- The largest i with i/100 <= x, for x in [0, 1]. floor(x * 100) is wrong at some edges (0.29 * 100 is
-- 28.999…), so it is compared with the edges and corrected.
CREATE TEMP MACRO hundredths(x) AS
    (
        floor(x * 100)
        + (x >= (floor(x * 100) + 1) / 100)::INTEGER
        - (x < floor(x * 100) / 100)::INTEGER
    )::INTEGER;

-- One bin's term of the population stability index; shares are floored at 0.0001.
CREATE TEMP MACRO psi_term(baseline_share, share) AS
    (greatest(share, 0.0001::DOUBLE) - greatest(baseline_share, 0.0001::DOUBLE))
    * ln(greatest(share, 0.0001::DOUBLE) / greatest(baseline_share, 0.0001::DOUBLE));

-- Probability of k successes in n trials of probability p, with 0 < p < 1.
CREATE TEMP MACRO binomial_probability(k, n, p) AS
    exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * ln(p) + (n - k) * ln(1 - p));

-- (The cube root of a gamma variable is nearly normal: Wilson and Hilferty 1931.)
CREATE TEMP MACRO standard_gamma_p99(skewness) AS
    2 / skewness * ((1 + skewness * {z_99} / 6 - skewness ** 2 / 36) ** 3 - 1);

-- 99% quantile of the gamma distribution, shifted, with this mean, variance and third central moment; of the
-- normal distribution if it is not skewed to the right.
CREATE TEMP MACRO gamma_p99(mean, variance, third_moment) AS
    mean + sqrt(greatest(variance, 0))
    * standard_gamma_p99(greatest(third_moment / nullif(greatest(variance, 0), 0) ** 1.5, 1e-6::DOUBLE));

-- One bin's term of the Jensen-Shannon divergence in bits; zero shares add nothing.
CREATE TEMP MACRO js_term(p, q) AS
    CASE WHEN p > 0 THEN 0.5 * p * log2(2 * p / (p + q)) ELSE 0 END
    + CASE WHEN q > 0 THEN 0.5 * q * log2(2 * q / (p + q)) ELSE 0 END;

-- Variance of an observed AUC over n passed and m failed scores if the true one is `auc` (Newcombe 2006,
-- method 5: that of Hanley and McNeil with the mean of n and m for both).
CREATE TEMP MACRO auc_variance(auc, n, m) AS
    auc * (1 - auc) / (n * m)
    * (1 + ((n + m) / 2 - 1) * ((1 - auc) / (2 - auc) + auc / (1 + auc)));

-- Kolmogorov's series: Q(l) = 2 sum_{j>=1} (-1)^(j-1) exp(-2 j^2 l^2); below l = 1.18 by the dual series
-- 1 - sqrt(2 pi) / l sum_{j>=1} exp(-(2j-1)^2 pi^2 / (8 l^2)), which converges there within three terms.
CREATE TEMP MACRO kolmogorov_q(l) AS
    CASE
        WHEN l < 0.05 THEN 1.0::DOUBLE
        WHEN l < 1.18 THEN 1 - sqrt(2 * pi()) / l * (
            exp(-1 * (pi() / l) ** 2 / 8) + exp(-9 * (pi() / l) ** 2 / 8) + exp(-25 * (pi() / l) ** 2 / 8)
        )
        ELSE 2 * (exp(-2 * l ** 2) - exp(-8 * l ** 2) + exp(-18 * l ** 2) - exp(-32 * l ** 2))
    END;

-- Asymptotic two-sided p-value of the Kolmogorov-Smirnov statistic d with samples of n and m:
-- kolmogorov_q of d sqrt(nm / (n + m)).
CREATE TEMP MACRO ks_p(d, n, m) AS
    kolmogorov_q(d * sqrt(n::DOUBLE * m::DOUBLE / nullif(n + m, 0)::DOUBLE));
