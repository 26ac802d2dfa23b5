"""Erasure: one person out of every store. Above the stores, since it knows all of them."""
