"""Reconstruction models by name."""

from recurra.mri.models.reconstructor import Reconstructor
from recurra.mri.models.rim import CIRIM, RIMBlock

MODELS: dict[str, type[Reconstructor]] = {"CIRIM": CIRIM}

__all__ = ["CIRIM", "MODELS", "RIMBlock", "Reconstructor"]
