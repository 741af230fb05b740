"""Datasets on disk and in object stores: files, shards, commits, manifest, quarantine, reading back."""
