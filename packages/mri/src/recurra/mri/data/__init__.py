"""Data sets and file formats of raw MRI: one file a format; opening a volume needs h5py and numpy, not torch."""

from typing import TYPE_CHECKING

from recurra.core.lazy import lazy

if TYPE_CHECKING:
    from recurra.mri.data.dataset import PhantomDataset as PhantomDataset
    from recurra.mri.data.dataset import SliceDataset as SliceDataset
    from recurra.mri.data.phantom import phantom_slice as phantom_slice
    from recurra.mri.data.reading import open_volume as open_volume
    from recurra.mri.data.sample import write_sample as write_sample
    from recurra.mri.data.volume import Volume as Volume

__getattr__, __dir__, __all__ = lazy(__name__)
