"""Erasure: removes one person from landing zone, lake and ledger, and keeps them from coming back.

A person is named by a tag and its value. What stays is a *tombstone*: the HMAC of that value, and of the id
of each of the person's submissions. Ingest asks the tombstones, so a manifest that still has the person
gives a row rejected as `erased_subject`, and no second call.
"""
