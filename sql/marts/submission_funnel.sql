-- Outcomes of each day's submissions. received = rejected + accepted; accepted = the sum of the outcomes.
-- Submissions of a day whose verification has not run yet are not_attempted.
--
-- date: Day of the manifest, the daily partition.
-- received: Rows of the day's manifests, each counted once. If a row may have been sent, it still counts
--   after its manifest is gone.
-- rejected: Rows that could not be submitted; see rejected_by_reason. A changed row of a submission that may
--   have been sent is rejected there, but counts here only once, as accepted.
-- accepted: Rows that became a submission, including those whose manifest is gone.
-- completed: Submissions with a usable response.
-- refused: The API rejected the submission for good.
-- quarantined: The 2xx response breaks the contract's hard requirements; not sent again unless an operator
--   reopens the submission.
-- uncertain: Sent, but without a sound response, and a look-up did not settle it: held for a decision.
-- abandoned: Was uncertain, and an operator decided never to send it again.
-- failed: Not processed, as far as DeepXL reports; a later run tries again.
-- not_attempted: Not sent yet: the run has not begun, was stopped, or used up its budget.
-- verified: Completed and verified; 0 until the day is flattened.
-- not_verified: Completed and not verified; 0 until the day is flattened, so that completed = verified +
--   not_verified holds on flattened days only.
-- is_complete: Whether no submission of the day is undecided; see days.
WITH accepted AS (
    SELECT
        date,
        count(*) AS accepted,
        count(*) FILTER (WHERE outcome = 'completed') AS completed,
        count(*) FILTER (WHERE outcome = 'refused') AS refused,
        count(*) FILTER (WHERE outcome = 'quarantined') AS quarantined,
        count(*) FILTER (WHERE outcome = 'uncertain') AS uncertain,
        count(*) FILTER (WHERE outcome = 'abandoned') AS abandoned,
        count(*) FILTER (WHERE outcome = 'failed') AS failed,
        count(*) FILTER (WHERE outcome = 'not_attempted') AS not_attempted
    FROM submissions
    GROUP BY date
),
changed AS (
    SELECT date, changed
    FROM lake.partitions
    WHERE table_name = 'submissions'
),
rejected AS (
    SELECT r.date, greatest(sum(r.rejected) - coalesce(any_value(c.changed), 0), 0)::BIGINT AS rejected
    FROM rejected_by_reason AS r
    LEFT JOIN changed AS c USING (date)
    GROUP BY r.date
),
decided AS (
    SELECT
        date,
        count(*) FILTER (WHERE verified) AS verified,
        count(*) FILTER (WHERE NOT verified) AS not_verified
    FROM verifications
    GROUP BY date
)
SELECT
    date,
    coalesce(r.rejected, 0) + coalesce(a.accepted, 0) AS received,
    coalesce(r.rejected, 0) AS rejected,
    coalesce(a.accepted, 0) AS accepted,
    coalesce(a.completed, 0) AS completed,
    coalesce(a.refused, 0) AS refused,
    coalesce(a.quarantined, 0) AS quarantined,
    coalesce(a.uncertain, 0) AS uncertain,
    coalesce(a.abandoned, 0) AS abandoned,
    coalesce(a.failed, 0) AS failed,
    coalesce(a.not_attempted, 0) AS not_attempted,
    coalesce(d.verified, 0) AS verified,
    coalesce(d.not_verified, 0) AS not_verified,
    y.is_complete
FROM accepted AS a
FULL JOIN rejected AS r USING (date)
FULL JOIN decided AS d USING (date)
JOIN days AS y USING (date)
ORDER BY date
