"""Simulated visual prompts: point, scribble, box and mask, in named profiles."""
