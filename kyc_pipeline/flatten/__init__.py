"""Flatten: from the answers of a day to the five curated tables."""
