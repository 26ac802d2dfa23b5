-- What became of the submissions of each day. received = rejected + accepted; accepted = the sum of the
-- outcomes. Submissions of a day whose verification has not run yet are not_attempted.
--
-- date: Day of the manifest, the daily partition.
-- received: Rows that the day's manifests delivered, each once. A row that may have been sent already counts
--   on after its manifest is gone.
-- rejected: Rows that could not be submitted; see rejected_by_reason.
-- accepted: Rows that became a submission, those included whose manifest is gone.
-- completed: Submissions with a usable answer.
-- refused: The API said no for good.
-- quarantined: Answered 2xx without the contract's hard requirements; never sent again.
-- uncertain: Sent, and the answer lost; held for a decision.
-- failed: Surely not processed; a later run tries again.
-- not_attempted: Not sent yet: the run stopped, its budget was reached, or it has not begun.
-- verified: Completed and decided as verified; 0 while the day is not flattened, so for rates use
--   verified_rates, which leaves such days out.
WITH accepted AS (
    SELECT
        date,
        count(*) AS accepted,
        count(*) FILTER (WHERE outcome = 'completed') AS completed,
        count(*) FILTER (WHERE outcome = 'refused') AS refused,
        count(*) FILTER (WHERE outcome = 'quarantined') AS quarantined,
        count(*) FILTER (WHERE outcome = 'uncertain') AS uncertain,
        count(*) FILTER (WHERE outcome = 'failed') AS failed,
        count(*) FILTER (WHERE outcome = 'not_attempted') AS not_attempted
    FROM submissions
    GROUP BY date
),
rejected AS (
    SELECT date, sum(rejected)::BIGINT AS rejected
    FROM rejected_by_reason
    GROUP BY date
),
decided AS (
    SELECT date, count(*) FILTER (WHERE verified) AS verified
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
    coalesce(a.failed, 0) AS failed,
    coalesce(a.not_attempted, 0) AS not_attempted,
    coalesce(d.verified, 0) AS verified
FROM accepted AS a
FULL JOIN rejected AS r USING (date)
FULL JOIN decided AS d USING (date)
ORDER BY date
