-- Fact: one row per check of a verification, in the order of the lake. The vendor's free text (`details`)
-- stays in the lake.
--
-- date: Day of the manifest, the daily partition.
-- verification_id: DeepXL's verification id.
-- submission_id: Submission id, unique forever.
-- check_group: Key under `modelResults`: `technicalChecks`, or OTHER for any other;
--   `result.technicalChecks` for a list outside that differs.
-- check_index: Position in the group, from 0.
-- type: Check type as received (`type`, else `checkType`); OTHER if it is unknown, NULL if absent.
-- check_type: `type`, or UNKNOWN if the response has none; the other tables group by it.
-- status: Status as received; OTHER if it is not in the status table.
-- normalized_status: PASS, FAIL, REVIEW, NOT_EVALUATED, ERROR, PENDING or UNKNOWN.
-- confidence: Confidence in [0, 1]; NULL if absent or out of range.
-- confidence_raw: JSON text of the confidence as received if it is a number or null; else OTHER.
-- is_complete: Whether no submission of the day is undecided; see days.
SELECT
    date,
    verification_id,
    submission_id,
    check_group,
    check_index,
    type,
    coalesce(nullif(type, ''), 'UNKNOWN') AS check_type,
    status,
    normalized_status,
    confidence,
    confidence_raw,
    date IN (
        SELECT date
        FROM days
        WHERE is_complete
    ) AS is_complete
FROM lake.model_checks
