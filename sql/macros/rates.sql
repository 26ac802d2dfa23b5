-- noqa: disable=capitalisation.types, layout.indent
-- Macros for rates, published in the warehouse for analysts' own queries. (sqlfluff parses macro parameters
-- as types, and would not indent the body.)

-- k / n as DOUBLE; NULL at n = 0.
CREATE MACRO ratio(k, n) AS k::DOUBLE / nullif(n, 0)::DOUBLE;

-- Lower bound of the 95% Wilson score interval of k successes in n trials, clamped to [0, 1]; NULL at n = 0.
-- At k = 0 it is exactly 0, without rounding noise.
CREATE MACRO wilson_low(k, n) AS
    CASE
        WHEN n = 0 OR n IS NULL OR k IS NULL THEN NULL
        WHEN k = 0 THEN 0.0::DOUBLE
        ELSE greatest(0.0::DOUBLE, (
            k::DOUBLE / n + {z_95}::DOUBLE ** 2 / (2 * n::DOUBLE)
            - {z_95}::DOUBLE * sqrt(
                (k::DOUBLE / n) * (1 - k::DOUBLE / n) / n + {z_95}::DOUBLE ** 2 / (4 * n::DOUBLE ** 2)
            )
        ) / (1 + {z_95}::DOUBLE ** 2 / n))
    END;

-- Upper bound of the interval of `wilson_low`; at k = n exactly 1.
CREATE MACRO wilson_high(k, n) AS
    CASE
        WHEN n = 0 OR n IS NULL OR k IS NULL THEN NULL
        WHEN k = n THEN 1.0::DOUBLE
        ELSE least(1.0::DOUBLE, (
            k::DOUBLE / n + {z_95}::DOUBLE ** 2 / (2 * n::DOUBLE)
            + {z_95}::DOUBLE * sqrt(
                (k::DOUBLE / n) * (1 - k::DOUBLE / n) / n + {z_95}::DOUBLE ** 2 / (4 * n::DOUBLE ** 2)
            )
        ) / (1 + {z_95}::DOUBLE ** 2 / n))
    END;

-- Lower bound of the 95% Agresti-Coull interval of k errors in n results, clamped to [0, 1]; NULL at n = 0.
-- If all are errors, it is the exact (Clopper-Pearson) bound. k and n may be fractions.
CREATE MACRO agresti_coull_low(k, n) AS
    CASE
        WHEN n = 0 OR n IS NULL OR k IS NULL THEN NULL
        WHEN k = n THEN 0.025::DOUBLE ** (1 / n::DOUBLE)
        ELSE greatest(0.0::DOUBLE, (
            k + {z_95}::DOUBLE ** 2 / 2
            - {z_95}::DOUBLE * sqrt(
                (k + {z_95}::DOUBLE ** 2 / 2) * (n - k + {z_95}::DOUBLE ** 2 / 2) / (n + {z_95}::DOUBLE ** 2)
            )
        ) / (n + {z_95}::DOUBLE ** 2))
    END;

-- Upper bound of the interval of `agresti_coull_low`; exact without an error.
CREATE MACRO agresti_coull_high(k, n) AS 1 - agresti_coull_low(n - k, n);

-- Lower bound of the 95% Newcombe interval of k1 / n1 - k2 / n2, from the Wilson intervals of both; NULL
-- without trials on either side.
CREATE MACRO newcombe_low(k1, n1, k2, n2) AS
    ratio(k1, n1) - ratio(k2, n2) - sqrt(
        (ratio(k1, n1) - wilson_low(k1, n1)) ** 2 + (wilson_high(k2, n2) - ratio(k2, n2)) ** 2
    );

-- Upper bound of the interval of `newcombe_low`.
CREATE MACRO newcombe_high(k1, n1, k2, n2) AS
    ratio(k1, n1) - ratio(k2, n2) + sqrt(
        (wilson_high(k1, n1) - ratio(k1, n1)) ** 2 + (ratio(k2, n2) - wilson_low(k2, n2)) ** 2
    );

-- Lower bound of k / n once `undecided` more are decided: if none of them succeeds.
CREATE MACRO rate_worst(k, n, undecided) AS ratio(k, n + undecided);

-- Upper bound of k / n once `undecided` more are decided: if all of them succeed.
CREATE MACRO rate_best(k, n, undecided) AS ratio(k + undecided, n + undecided);

-- Whether a sample of size n is too small to base decisions on: below {low_n}.
CREATE MACRO is_low_n(n) AS n < {low_n};

-- Whether `day` is one of the {recent_days} days that end with `last_day`.
CREATE MACRO is_recent(day, last_day) AS day > last_day - {recent_days};
