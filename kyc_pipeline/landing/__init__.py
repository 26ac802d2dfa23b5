"""The landing zone: manifests by day, and documents, in a folder or in S3.

`zone.py` defines the interface, `local.py` and `s3.py` implement it, and `opening.py` chooses. The documents
of a folder are in :mod:`kyc_pipeline.document_store`.
"""
