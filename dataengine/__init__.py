"""The spine of the data engine: the sample format, masks, prompts as values, shards and executors.

Importing this package is cheap: torch, ray, datasets, pyarrow and the mask libraries load on first use.
"""

__version__ = "0.1.0"
