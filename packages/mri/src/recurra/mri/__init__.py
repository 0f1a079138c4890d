"""Recurrent MRI reconstruction: RIM, CIRIM and RecurrentVarNet, from k-space files to images."""

from typing import TYPE_CHECKING

from recurra.core.lazy import lazy

if TYPE_CHECKING:
    from recurra.mri.data import open_volume as open_volume
    from recurra.mri.inference import load_checkpoint as load_checkpoint
    from recurra.mri.models import CIRIM as CIRIM
    from recurra.mri.models import DirectRIM as DirectRIM
    from recurra.mri.models import Reconstructor as Reconstructor
    from recurra.mri.models import RecurrentVarNet as RecurrentVarNet
    from recurra.mri.verbs import Undersampling as Undersampling
    from recurra.mri.verbs import convert as convert
    from recurra.mri.verbs import evaluate as evaluate
    from recurra.mri.verbs import export as export
    from recurra.mri.verbs import info as info
    from recurra.mri.verbs import inspect as inspect
    from recurra.mri.verbs import reconstruct as reconstruct
    from recurra.mri.verbs import sample as sample
    from recurra.mri.verbs import train as train

__getattr__, __dir__, __all__ = lazy(__name__)
