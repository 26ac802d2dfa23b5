-- Fact: one row per check of a verification, in the order of the lake. The vendor's free text (`details`)
-- stays in the lake.
--
-- date: Day of the manifest, the daily partition.
-- verification_id: DeepXL's verification id.
-- submission_id: Submission id, unique forever.
-- check_group: Key under `modelResults`, such as `technicalChecks`.
-- check_index: Position in the group, from 0.
-- type: Check type as received (`type`, else `checkType`); NULL if the response has none.
-- check_type: `type`, or UNKNOWN if the response has none; the other tables group by it.
-- status: Status as received.
-- normalized_status: PASS, FAIL, REVIEW, NOT_EVALUATED, ERROR, PENDING or UNKNOWN.
-- confidence: Confidence in [0, 1]; NULL if absent or out of range.
-- confidence_raw: JSON text of the confidence as received.
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
    confidence_raw
FROM lake.model_checks
