-- noqa: disable=capitalisation.types, layout.indent
-- Macros that only the models need, for outcomes.

-- Whether nobody can say yet how a submission ends: it may still get a verdict.
CREATE TEMP MACRO is_undecided(outcome, verified) AS
    outcome IN ({undecided_outcomes}) OR (outcome = 'completed' AND verified IS NULL);
