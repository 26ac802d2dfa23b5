"""Flatten: turns a day's responses into the five curated tables."""
