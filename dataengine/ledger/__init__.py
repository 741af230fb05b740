"""The ledger of a relabeling loop: every mask that was ever proposed, and what became of it."""
