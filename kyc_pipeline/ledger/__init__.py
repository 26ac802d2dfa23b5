"""The ledger of paid calls: what was sent, what came of it, and who may send."""
