"""The ledger of paid calls: what was sent, the results, and who may send."""
