-- noqa: disable=capitalisation.types, layout.indent
-- Macros that only the models need, for rates.

-- Variance of the rate k / n, with one success and one failure added, as in Agresti and Caffo's interval.
CREATE TEMP MACRO variance_of_rate(k, n) AS
    (k + 1)::DOUBLE / (n + 2) * (n - k + 1) / (n + 2) / (n + 2);
