"""Ingest: reads manifests from the landing zone into `submissions` and `rejected_submissions`.

`formats/` parses the files, `rows.py` validates rows, `documents.py` examines documents, `ownership.py`
decides duplicates and conflicts, `manifests.py` ingests a whole day, and `state.py` tells whether it must be
ingested again. `images.py` decides whether an image can be decoded, `personal_ids.py` finds ids that look
like personal data, and `labels.py` reads the labels.
"""
