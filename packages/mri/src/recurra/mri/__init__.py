"""Recurrent MRI reconstruction: RIM, CIRIM and RecurrentVarNet, from k-space files to images.

Names are imported when first used, so that `recurra-mri --help` does not wait for torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recurra.mri.conversion import convert
    from recurra.mri.data import open_volume
    from recurra.mri.evaluation import evaluate
    from recurra.mri.exporting import export
    from recurra.mri.models import CIRIM, DirectRIM, Reconstructor, RecurrentVarNet
    from recurra.mri.predict import Undersampling, load_checkpoint, reconstruct
    from recurra.mri.training import train

__version__ = version("recurra-mri")

__all__ = [
    "CIRIM",
    "DirectRIM",
    "Reconstructor",
    "RecurrentVarNet",
    "Undersampling",
    "__version__",
    "convert",
    "evaluate",
    "export",
    "load_checkpoint",
    "open_volume",
    "reconstruct",
    "train",
]

_HOME = {
    "CIRIM": "models",
    "DirectRIM": "models",
    "Reconstructor": "models",
    "RecurrentVarNet": "models",
    "Undersampling": "predict",
    "load_checkpoint": "predict",
    "reconstruct": "predict",
    "convert": "conversion",
    "evaluate": "evaluation",
    "export": "exporting",
    "open_volume": "data",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
