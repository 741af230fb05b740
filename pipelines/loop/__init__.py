"""Rounds of training, relabeling and measuring."""
