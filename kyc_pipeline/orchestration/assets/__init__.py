"""The assets of each stage, one module a stage."""
