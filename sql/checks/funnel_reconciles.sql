-- On every day, received = rejected + accepted, and accepted = the sum of the outcomes.
--
-- severity: error
-- counts: days
-- todo: run `kyc-pipeline publish --force`, or materialize the group analyze; if it still fails, it is a bug
SELECT date, received, rejected, accepted
FROM submission_funnel
WHERE
    received <> rejected + accepted
    OR accepted <> completed + refused + quarantined + uncertain + abandoned + failed + not_attempted
    OR verified > completed
