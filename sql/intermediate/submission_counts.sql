-- Number of submissions by day, company, dimensions and result. Not published.
--
-- date: Day of the manifest, the daily partition.
-- company_id: Value of the tag `companyId`; UNKNOWN without it.
-- dimensions: Dimension → value.
-- outcome: Outcome of these submissions.
-- verified: Their verdict; NULL without one.
-- is_undecided: Whether they may still get a verdict.
-- submissions: Submissions with this result.
-- billable_calls: Their calls that were or may have been billed.
SELECT
    date,
    company_id,
    dimensions,
    outcome,
    verified,
    is_undecided(outcome, verified) AS is_undecided,
    count(*) AS submissions,
    sum(billable_calls)::BIGINT AS billable_calls
FROM submissions
GROUP BY ALL
