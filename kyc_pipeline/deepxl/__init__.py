"""The DeepXL API: `contract` (the shape of a response), `client`, `call_errors`, `simulator`."""
