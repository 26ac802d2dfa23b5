"""The demo's made-up people, documents and manifests. Nothing here is used in real runs."""
