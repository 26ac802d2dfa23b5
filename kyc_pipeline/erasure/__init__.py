"""Erasure: removes one person from landing zone, lake and ledger, and keeps them from coming back.

A person is identified by a tag and its value. What remains: *tombstones*, which are HMACs of that value and
of the person's submission ids and documents; the cost of the calls, under pseudonyms; and what DeepXL must
still delete. Ingest checks the tombstones: if a manifest names the person again, the row is rejected as
`erased_subject` and never sent.
"""
