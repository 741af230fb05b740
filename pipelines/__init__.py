"""The verbs a user runs, the recipes that ship with them, and the command line."""
