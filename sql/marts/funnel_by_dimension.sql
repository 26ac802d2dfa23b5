-- Outcomes and cost of each day's submissions by value of each dimension: the tags of `KYC_DIMENSIONS`, and
-- the model version, which only verifications have. Each dimension has every submission once.
--
-- date: Day of the manifest, the daily partition.
-- dimension: Name of the tag, or `model_version`.
-- value: Its value in the manifest, or in the response for `model_version`; UNKNOWN without one, {suppressed}
--   for all values with few people: see submissions.
-- accepted: Submissions with this value.
-- completed: Those with a usable response.
-- refused: Those that the API rejected for good.
-- quarantined: Those whose 2xx response breaks the contract's hard requirements.
-- uncertain: Those that were sent, but without a sound response, and a look-up did not settle them.
-- abandoned: Those that were uncertain, and an operator decided never to send them again.
-- failed: Those not processed, as far as DeepXL reports.
-- not_attempted: Those not sent yet.
-- verified: Completed and verified; 0 until the day is flattened.
-- not_verified: Completed and not verified; 0 until the day is flattened.
-- billable_calls: Calls that were or may have been billed: 2xx and ambiguous ones.
-- estimated_cost: billable_calls times `DEEPXL_PRICE_PER_CALL`; NULL without a price.
-- is_complete: Whether no submission of the day is undecided; see days.
WITH sliced AS (
    SELECT
        date,
        unnest(map_keys(dimensions)) AS dimension,
        unnest(map_values(dimensions)) AS value,
        outcome,
        verified,
        submissions,
        billable_calls
    FROM submission_counts
),
counts AS (
    SELECT
        date,
        dimension,
        value,
        sum(submissions)::BIGINT AS accepted,
        coalesce(sum(submissions) FILTER (WHERE outcome = 'completed'), 0)::BIGINT AS completed,
        coalesce(sum(submissions) FILTER (WHERE outcome = 'refused'), 0)::BIGINT AS refused,
        coalesce(sum(submissions) FILTER (WHERE outcome = 'quarantined'), 0)::BIGINT AS quarantined,
        coalesce(sum(submissions) FILTER (WHERE outcome = 'uncertain'), 0)::BIGINT AS uncertain,
        coalesce(sum(submissions) FILTER (WHERE outcome = 'abandoned'), 0)::BIGINT AS abandoned,
        coalesce(sum(submissions) FILTER (WHERE outcome = 'failed'), 0)::BIGINT AS failed,
        coalesce(sum(submissions) FILTER (WHERE outcome = 'not_attempted'), 0)::BIGINT AS not_attempted,
        coalesce(sum(submissions) FILTER (WHERE verified), 0)::BIGINT AS verified,
        coalesce(sum(submissions) FILTER (WHERE NOT verified), 0)::BIGINT AS not_verified,
        sum(billable_calls)::BIGINT AS billable_calls
    FROM sliced
    GROUP BY date, dimension, value
)
SELECT
    date,
    dimension,
    value,
    c.accepted,
    completed,
    refused,
    quarantined,
    uncertain,
    abandoned,
    failed,
    not_attempted,
    verified,
    not_verified,
    billable_calls,
    cost_of(billable_calls) AS estimated_cost,
    is_complete
FROM counts AS c
JOIN days USING (date)
ORDER BY date, dimension, value
