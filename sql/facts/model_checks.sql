-- Fact: one row per check of a verification, in the order of the lake. The vendor's free text (`details`)
-- stays in the lake.
--
-- date: Day of the manifest, the daily partition.
-- verification_id: DeepXL's id of the verification.
-- submission_id: The submission's id, unique for ever.
-- check_group: Key under `modelResults`, such as `technicalChecks`.
-- check_index: Position in its group, from 0.
-- type: Check type as received; NULL if the answer has none.
-- check_type: `type`, or UNKNOWN if the answer has none: the other tables group by it.
-- status: Status as received.
-- normalized_status: PASS, FAIL, REVIEW, NOT_EVALUATED, ERROR, PENDING or UNKNOWN.
-- confidence: Confidence in [0, 1]; NULL when absent or outside.
-- confidence_raw: Confidence as received, as JSON text.
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
