"""The bundled X-SAM and its trainer."""
