"""The bundled X-SAM and its trainer.

Importing the package loads neither torch nor transformers; its modules do.
"""
