-- Why verifications were declined: share of all declines in which a check failed, and in which only it
-- failed. UNEXPLAINED_DECLINE: no check failed (one may be in review or not evaluated).
WITH declined AS (
    SELECT sum(verifications - verified) AS n
    FROM verified_rates
)
SELECT
    check_group,
    check_type,
    sum(failing) AS declined_with_it,
    ratio(sum(failing), any_value(n)) AS share,
    ratio(sum(sole_blocker), any_value(n)) AS share_alone
FROM failure_attribution
CROSS JOIN declined
WHERE NOT (check_group = 'verdict' AND check_type = 'OVERRIDE')  -- those were verified
GROUP BY check_group, check_type
ORDER BY declined_with_it DESC;
