"""The assets of each stage, one module per stage."""
