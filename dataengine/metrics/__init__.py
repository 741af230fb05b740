"""Scores of predictions against ground truth: numbers in [0, 1] from masks and label maps, no files of this project."""
