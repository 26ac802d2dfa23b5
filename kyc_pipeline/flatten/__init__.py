"""Flatten: turns a day's answers into the five curated tables."""
