"""The end-to-end variational network (Sriram et al. 2020, arXiv:2004.06688) of MONAI: a trainable baseline.

Nothing of the network is ours: this calls `monai.apps.reconstruction`'s VariationalNetworkModel and gives it the form
of a `Reconstructor`. Its U-Nets are MONAI's BasicUNet, not those of the paper, so published weights do not fit.
"""

from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from recurra.core.checks import whole_numbers
from recurra.mri.models.reconstructor import Maps, Reconstructor, Scaling
from recurra.mri.operators import FFTConvention

if TYPE_CHECKING:
    from monai.apps.reconstruction.networks.nets.varnet import VariationalNetworkModel

Features = tuple[int, int, int, int, int, int]


class VarNet(Reconstructor):
    """End-to-end variational network of MONAI: cascades of a U-Net and a soft data consistency step in k-space.

    It estimates coil maps with a U-Net of its own from the centre columns, so `sensitivity` is not used, and it knows
    column masks and the centred orthonormal transform alone. All of it runs in float32, also inside autocast regions.

    Args:
        cascades: Number of cascades; 12 in the paper.
        features: Channels of the U-Net of a cascade: five levels and the last decoder.
        sensitivity_features: The same of the U-Net for coil maps.
        dropout: Of both.
        fft: "centered-ortho"; MONAI has no other.
        maps: What is estimated for `sensitivity`, in vain; "rss" costs least.
        scaling: As in `Reconstructor`; the paper feeds the data as they are.
    """

    network: "VariationalNetworkModel"
    unexportable: ClassVar[str | None] = "MONAI's network looks for the calibration columns in the values of the mask"

    def __init__(
        self,
        *,
        cascades: int = 12,
        features: Features = (18, 18, 36, 72, 144, 18),
        sensitivity_features: Features = (8, 8, 16, 32, 64, 8),
        dropout: float = 0.0,
        fft: FFTConvention = "centered-ortho",
        maps: Maps = "rss",
        scaling: Scaling = "max_image",
    ) -> None:
        super().__init__(fft=fft, maps=maps, scaling=scaling)
        whole_numbers(cascades=cascades)
        if fft != "centered-ortho":
            raise ValueError(f"fft must be centered-ortho for VarNet, MONAI has no other; got {fft!r}")
        from monai.apps.reconstruction.networks.nets.coil_sensitivity_model import CoilSensitivityModel
        from monai.apps.reconstruction.networks.nets.complex_unet import ComplexUnet
        from monai.apps.reconstruction.networks.nets.varnet import VariationalNetworkModel

        self.network = VariationalNetworkModel(
            CoilSensitivityModel(features=sensitivity_features, dropout=dropout),
            ComplexUnet(features=features, dropout=dropout),
            num_cascades=cascades,
        )

    def forward(
        self,
        kspace: Complex[Tensor, "batch coil height width"],
        sensitivity: Complex[Tensor, "#batch coil height width"],
        mask: Bool[Tensor, "#batch 1 #height #width"],
    ) -> Float[Tensor, "batch height width"]:
        """Return the root of the sum of squares of the reconstructed coil images.

        Raises:
            ValueError: The mask is not one of columns, or its centre is not sampled or has no end.
        """
        self.check(kspace, sensitivity, mask)
        columns = self._columns(mask.expand(len(kspace), -1, -1, -1), kspace.shape[-1])
        with torch.autocast(kspace.device.type, enabled=False):
            # MONAI finds the calibration columns of one mask at a time.
            items = [self.network(torch.view_as_real(k)[None], m) for k, m in zip(kspace, columns, strict=True)]
        return torch.cat(items)

    def _columns(self, mask: Tensor, width: int) -> Tensor:
        """The mask as MONAI wants it, (batch, 1, 1, 1, width, 1), once MONAI's search for the centre is sure to end."""
        if not torch.equal(mask, mask[:, :, :1].expand_as(mask)):
            raise ValueError("mask differs between rows; MONAI's VarNet takes column masks alone")
        columns = mask[:, :, :1].expand(-1, -1, -1, width)
        centre = width // 2
        if not columns[..., centre].all() or columns[..., centre:].all(-1).any() or columns[..., :centre].all(-1).any():
            raise ValueError("mask must sample the centre column, and not all columns to one side of it")
        return columns[:, None, ..., None]
