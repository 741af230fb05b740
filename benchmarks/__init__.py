"""Every figure the README claims, measured: `python -m benchmarks`."""
