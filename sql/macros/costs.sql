-- noqa: disable=capitalisation.types, layout.indent
-- Macros that only the models need, for amounts.

-- The cost of `calls` at the price of this build; NULL without a price.
CREATE TEMP MACRO cost_of(calls) AS
    (calls::DECIMAL(18, 0) * getvariable('price_per_call')::DECIMAL(18, 6))::DECIMAL(38, 6);
