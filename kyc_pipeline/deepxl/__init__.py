"""All that is known of the DeepXL API: `contract` (what an answer is), `client`, `errors`, `simulator`."""
