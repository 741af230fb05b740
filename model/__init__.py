"""The bundled X-SAM and its trainer.

Importing the package is light: its names load their modules, and so torch and transformers, when they are asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.config import PRESETS, XSamConfig, preset
    from model.losses import segmentation_losses
    from model.predicting import Predictor
    from model.segmentor import Segmentor
    from model.xsam import XSam

__all__ = ["PRESETS", "Predictor", "Segmentor", "XSam", "XSamConfig", "preset", "segmentation_losses"]

_MODULES = {
    "Predictor": "predicting",
    "Segmentor": "segmentor",
    "XSam": "xsam",
    "segmentation_losses": "losses",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(importlib.import_module(f"model.{_MODULES.get(name, 'config')}"), name)
