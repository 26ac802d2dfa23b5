-- noqa: disable=capitalisation.types, layout.indent
-- Macros that only the models need, for persons.

-- The number of the person with this key within a scope, such as a company; NULL without a key. A missing
-- part of the scope counts as a value of its own.
CREATE TEMP MACRO subject_of(key, outer_scope, inner_scope) AS
    CASE
        WHEN key IS NULL OR (outer_scope IS NULL AND inner_scope IS NULL) THEN key
        ELSE md5_number(
            concat_ws(':', key, coalesce(outer_scope::VARCHAR, ''), coalesce(inner_scope::VARCHAR, ''))
        )
    END;
