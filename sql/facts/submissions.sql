-- Fact: one row per submission accepted from the manifests, with its outcome.
--
-- date: Day of the manifest, the daily partition.
-- submission_id: Submission id, unique forever.
-- submitted_at: Time of the submission, from the manifest (UTC); NULL if it has none.
-- outcome: completed, refused, quarantined, uncertain, abandoned, failed or not_attempted (also if the day's
--   verification has not run yet); NULL only if the submission is unaccounted for, which stops publication.
-- attempts: Calls for this submission, over all runs: requests of which at least a byte may have left.
-- http_status: HTTP status of the last response; NULL if there was none.
-- latency_ms: Milliseconds from the start of the last call to its complete response, on a monotonic clock.
-- verified: DeepXL's decision; NULL without a verification, or until the day is flattened.
-- company_id: Value of the tag `companyId` in the manifest; UNKNOWN without it, or if it is not in
--   `KYC_CLEAR_TAGS`. {suppressed} for companies with fewer than `KYC_MIN_CELL` people on the day, and as
--   many others as it takes to hide them; the restricted file has them.
-- dimensions: Dimension → value, as in `dimensions['country']`: the tags of `KYC_DIMENSIONS` in the manifest,
--   and `model_version` from the response; UNKNOWN without a value. {suppressed} for values of few people,
--   as in company_id; a model version is never hidden.
-- billable_calls: Calls that were or may have been billed: 2xx and ambiguous ones.
-- estimated_cost: billable_calls times `DEEPXL_PRICE_PER_CALL`; NULL without a price.
-- is_complete: Whether no submission of the day is undecided; see days.
SELECT
    s.date,
    s.submission_id,
    s.submitted_at AT TIME ZONE 'UTC' AS submitted_at,
    CASE WHEN verified_days.date IS NULL THEN 'not_attempted' ELSE r.outcome END AS outcome,
    coalesce(r.attempts, 0) AS attempts,
    r.http_status,
    r.latency_ms,
    v.verified,
    coalesce(s.company_id, 'UNKNOWN') AS company_id,
    map_concat(s.dimensions, map(['model_version'], [coalesce(v.model_version, 'UNKNOWN')])) AS dimensions,
    coalesce(r.billable_calls, 0) AS billable_calls,
    cost_of(coalesce(r.billable_calls, 0)) AS estimated_cost,
    d.is_complete
FROM lake.submissions AS s
LEFT JOIN lake.verification_responses AS r ON r.date = s.date AND r.submission_id = s.submission_id
LEFT JOIN lake.verifications AS v ON v.date = s.date AND v.submission_id = s.submission_id
JOIN days AS d ON d.date = s.date
LEFT JOIN (
    SELECT date
    FROM lake.partitions
    WHERE table_name = 'verification_responses'
) AS verified_days ON verified_days.date = s.date
ORDER BY s.date, s.submission_id
