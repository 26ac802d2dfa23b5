-- On every day, received = rejected + accepted, and accepted = the sum of the outcomes.
--
-- severity: error
-- counts: days
-- todo: materialize the group analyze again; if it still fails, it is a bug
SELECT date, received, rejected, accepted
FROM submission_funnel
WHERE
    received <> rejected + accepted
    OR accepted <> completed + refused + quarantined + uncertain + abandoned + failed + not_attempted
    OR verified > completed
