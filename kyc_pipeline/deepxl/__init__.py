"""Everything about the DeepXL API: `contract` (the shape of an answer), `client`, `errors`, `simulator`."""
