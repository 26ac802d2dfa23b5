"""Ingest: reads manifests from the landing zone into `submissions` and `rejected_submissions`.

`formats/` parses the files, `rows.py` validates rows, `documents.py` examines documents, `ownership.py`
decides duplicates and conflicts, `manifests.py` ingests a whole day, and `state.py` tells whether it must be
ingested again.
"""
