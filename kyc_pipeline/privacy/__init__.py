"""Privacy: pseudonyms, which replace personal values in curated data, and the tombstones of erased people."""
