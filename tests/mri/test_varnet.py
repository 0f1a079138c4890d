"""MONAI's variational network behind our call signature: the same numbers, and clear refusals."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from recurra.core.testing import assert_close
from recurra.mri.models import Reconstructor
from recurra.mri.models.varnet import VarNet
from recurra.mri.operators import fft, sense_expand

TINY = {"cascades": 2, "features": (4, 4, 4, 4, 4, 4), "sensitivity_features": (4, 4, 4, 4, 4, 4)}


def scan(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(batch, 3, 32, 36, generator=generator, dtype=torch.complex64)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    image = torch.randn(batch, 32, 36, generator=generator, dtype=torch.complex64)
    mask = torch.rand(batch, 1, 1, 36, generator=generator) < 0.4
    mask[..., 15:22] = True
    mask[..., [0, 35]] = False
    return fft(sense_expand(image, maps)) * mask, maps, mask


def model(**options: object) -> VarNet:
    torch.manual_seed(0)
    return VarNet(**{**TINY, **options}).eval()  # type: ignore[arg-type]


def test_gives_monais_numbers() -> None:
    from monai.apps.reconstruction.networks.nets.coil_sensitivity_model import CoilSensitivityModel
    from monai.apps.reconstruction.networks.nets.complex_unet import ComplexUnet
    from monai.apps.reconstruction.networks.nets.varnet import VariationalNetworkModel

    ours = model()
    theirs = VariationalNetworkModel(CoilSensitivityModel(features=(4,) * 6), ComplexUnet(features=(4,) * 6), 2).eval()
    theirs.load_state_dict(ours.network.state_dict())
    kspace, maps, mask = scan(batch=1)
    with torch.no_grad():
        expected = theirs(torch.view_as_real(kspace), mask[:, :, :, :, None])
        assert_close(ours(kspace, maps, mask), expected)
        assert_close(ours(kspace, torch.zeros_like(maps), mask), expected)  # it makes its own maps


def test_items_of_a_batch_keep_their_own_masks() -> None:
    kspace, maps, mask = scan()
    network = model()
    with torch.no_grad():
        both = network(kspace, maps, mask)
        for i in range(2):
            alone = network(kspace[i : i + 1], maps[i : i + 1], mask[i : i + 1])
            assert_close(both[i], alone[0], atol=1e-5, rtol=1e-5)


def test_learns_also_inside_autocast() -> None:
    kspace, maps, mask = scan()
    network = model().train()
    target = torch.ones(2, 32, 36)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ((_, estimate),) = network.estimates(kspace, maps, mask)
        loss = (estimate - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert estimate.dtype == torch.float32
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    network = model()
    network.save_pretrained(str(tmp_path))
    loaded = Reconstructor.from_pretrained(str(tmp_path))
    assert isinstance(loaded, VarNet)
    kspace, maps, mask = scan()
    with torch.no_grad():
        assert torch.equal(loaded.prepared()(kspace, maps, mask), network(kspace, maps, mask))


def test_refusals() -> None:
    kspace, maps, mask = scan()
    network = model()
    two_dimensional = mask.expand(-1, -1, 32, -1).clone()
    two_dimensional[0, 0, 3, 3] ^= True
    with pytest.raises(ValueError, match="mask differs between rows; MONAI's VarNet takes column masks alone"):
        network(kspace, maps, two_dimensional)
    for wrong in (torch.ones_like(mask), torch.zeros_like(mask)):
        with pytest.raises(ValueError, match="mask must sample the centre column, and not all columns"):
            network(kspace, maps, wrong)
    with pytest.raises(ValueError, match="fft must be centered-ortho for VarNet"):
        model(fft="uncentered-ortho")
