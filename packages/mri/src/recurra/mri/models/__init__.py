"""Reconstruction models by name."""

import recurra.mri.models.prepared  # noqa: F401 - registers the forms for inference
from recurra.mri.models.reconstructor import Reconstructor
from recurra.mri.models.recurrentvarnet import RecurrentVarNet
from recurra.mri.models.rim import CIRIM, RIMBlock
from recurra.mri.models.rim_direct import DirectRIM
from recurra.mri.models.unet import NormUnet, Unet
from recurra.mri.models.varnet import VarNet

MODELS: dict[str, type[Reconstructor]] = {
    "CIRIM": CIRIM,
    "DirectRIM": DirectRIM,
    "RecurrentVarNet": RecurrentVarNet,
    "VarNet": VarNet,
}

__all__ = ["CIRIM", "MODELS", "DirectRIM", "NormUnet", "RIMBlock", "Reconstructor", "RecurrentVarNet", "Unet", "VarNet"]
