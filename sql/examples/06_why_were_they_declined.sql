-- Why verifications were declined: share of declines in which a check failed, and in which only it failed.
-- UNEXPLAINED_DECLINE: no check failed (one may be in review or not evaluated).
SELECT
    check_type,
    sum(failing) AS declined_with_it,
    ratio(sum(failing), sum(not_verified)) AS share,
    ratio(sum(sole_blocker), sum(not_verified)) AS share_alone
FROM failure_attribution
WHERE NOT (check_group = 'verdict' AND check_type = 'OVERRIDE')  -- those were verified
GROUP BY check_type
ORDER BY declined_with_it DESC;
