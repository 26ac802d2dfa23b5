-- Which pass rates changed significantly from the week before (Newcombe interval of the difference),
-- newest week first.
SELECT week, days, check_type, pass_rate, previous_pass_rate, change, change_low, change_high
FROM pass_rate_changes
WHERE significant
ORDER BY week DESC, abs(change) DESC;
