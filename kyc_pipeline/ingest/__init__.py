"""Ingest: from the landing zone to `submissions` and `rejected_submissions`.

`formats.py` knows the files' forms, `rows.py` the rules of a row, `documents.py` those of a document,
`ownership.py` those between rows; `manifests.py` puts a day together.
"""
