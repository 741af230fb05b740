"""Scores of a model's predictions against a benchmark: one scorer a task, one file format, one report."""
