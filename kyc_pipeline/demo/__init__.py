"""The demo's made-up people, documents and manifests. Real runs do not use this package."""
