"""Erasure: removes one person from landing zone, lake and ledger, and keeps them from coming back.

A person is identified by a tag and its value. All that remains are *tombstones*: HMACs of that value and of
the ids of the person's submissions. Ingest checks them: if a manifest names the person again, the row is
rejected as `erased_subject` and never sent.
"""
