"""Data sets and file formats of raw MRI: one file a format.

Names are imported when first used: opening a volume needs h5py and numpy, not torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recurra.mri.data.datamodule import MRIData
    from recurra.mri.data.dataset import PhantomDataset, SliceDataset
    from recurra.mri.data.phantom import phantom_slice
    from recurra.mri.data.reading import open_volume
    from recurra.mri.data.sample import write_sample
    from recurra.mri.data.volume import Volume

__all__ = ["MRIData", "PhantomDataset", "SliceDataset", "Volume", "open_volume", "phantom_slice", "write_sample"]

_HOME = {
    "MRIData": "datamodule",
    "PhantomDataset": "dataset",
    "SliceDataset": "dataset",
    "Volume": "volume",
    "open_volume": "reading",
    "phantom_slice": "phantom",
    "write_sample": "sample",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
