"""How the stages run in Dagster: partitions, resources, jobs, schedules, sensors and automation."""
