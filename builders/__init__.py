"""Builders: one module per published source; finds its files, indexes them, turns index rows into samples."""
