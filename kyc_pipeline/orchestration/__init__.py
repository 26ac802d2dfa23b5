"""Everything that Dagster runs: assets, checks, resources, jobs, schedules, sensors and automation."""
