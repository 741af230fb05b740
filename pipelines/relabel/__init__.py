"""Relabeling: a labeler proposes masks, filters measure them, and the ledger keeps what came of it."""
