-- noqa: disable=capitalisation.types, layout.indent
-- Macros that only the models need, for persons.

-- The decimal digits of a 128-bit number; an empty text for NULL. Through BIGNUM because DuckDB 2.0 takes
-- 24 microseconds to cast a UHUGEINT to text, and 0.1 this way.
CREATE TEMP MACRO digits_of(number) AS
    coalesce(number::BIGNUM::VARCHAR, '');

-- The number of the person with this key within a scope, such as a company; NULL without a key. A missing
-- part of the scope counts as a value of its own.
CREATE TEMP MACRO subject_of(key, outer_scope, inner_scope) AS
    CASE
        WHEN key IS NULL OR (outer_scope IS NULL AND inner_scope IS NULL) THEN key
        ELSE md5_number(concat_ws(':', digits_of(key), digits_of(outer_scope), digits_of(inner_scope)))
    END;
