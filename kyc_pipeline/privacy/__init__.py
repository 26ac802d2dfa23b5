"""Pseudonyms: what stands in curated data in the place of a personal value."""
