-- On every day, received = rejected + accepted, and accepted = the sum of the outcomes.
--
-- severity: error
-- counts: days
SELECT date, received, rejected, accepted
FROM submission_funnel
WHERE
    received <> rejected + accepted
    OR accepted <> completed + refused + quarantined + uncertain + failed + not_attempted
    OR verified > completed
