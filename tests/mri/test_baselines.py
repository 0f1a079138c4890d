"""Classical reconstructions: against closed forms, direct calls of SigPy, and every Fourier convention."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from recurra.core.testing import assert_close
from recurra.mri.baselines import BASELINES, cg_sense, l1_wavelet, zero_filled
from recurra.mri.metrics import scale_invariant_metrics
from recurra.mri.operators import FFTConvention, fft, ifft, sense_expand


def scan(convention: FFTConvention = "centered-ortho", batch: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Undersampled k-space, maps and mask of blocks behind a smooth phase, and the image."""
    generator = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 32), indexing="ij")
    image = 1.0 * ((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1) + 0.7 * ((x - 0.2).abs() < 0.15) * ((y + 0.3).abs() < 0.3)
    image = image * torch.polar(torch.ones_like(x), 0.8 * x)
    centers = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    coils = torch.stack([torch.exp(-((y - a) ** 2 + (x - b) ** 2) / 3) for a, b in centers])
    maps = (coils / coils.square().sum(0).sqrt()).to(torch.complex64)[None].repeat(batch, 1, 1, 1)
    images = image[None] * torch.arange(1, batch + 1)[:, None, None]
    mask = torch.rand(1, 1, 1, 32, generator=generator) < 0.4
    mask[..., 13:20] = True
    if convention.startswith("uncentered"):
        images, maps = torch.fft.ifftshift(images, dim=(1, 2)), torch.fft.ifftshift(maps, dim=(2, 3))
    if not convention.startswith("centered"):
        mask = torch.fft.ifftshift(mask, dim=-1)
    return fft(sense_expand(images, maps), convention) * mask, maps, mask, images


def test_zero_filled_is_the_root_of_the_sum_of_squares() -> None:
    kspace, maps, mask, _ = scan()
    coil_images = ifft(kspace)
    expected = (coil_images.real**2 + coil_images.imag**2).sum(1).sqrt()
    assert_close(zero_filled(kspace, maps, mask), expected, rtol=1e-5, atol=1e-6)
    assert_close(zero_filled(kspace), expected, rtol=1e-5, atol=1e-6)


def test_cg_sense_of_full_sampling_is_the_damped_image() -> None:
    _, maps, mask, image = scan()
    kspace = fft(sense_expand(image, maps))
    found = cg_sense(kspace, maps, torch.ones_like(mask), regularization=0.25)
    assert_close(found, image / 1.25, atol=1e-5)


def test_cg_sense_solves_the_normal_equations() -> None:
    kspace, maps, mask, _ = scan()
    x = cg_sense(kspace, maps, mask, regularization=0.01)
    residual = fft(sense_expand(x, maps)) * mask - kspace
    gradient = (maps.conj() * ifft(residual)).sum(1) + 0.01 * x
    assert gradient.abs().max() < 1e-4 * x.abs().max()


@pytest.mark.parametrize("name", BASELINES)
def test_equals_sigpy_called_with_its_own_lambda(name: str) -> None:
    import sigpy.mri.app

    kspace, maps, mask, _ = scan()
    y, coils, weights = kspace[0].numpy(), maps[0].numpy(), mask.expand(1, 1, 40, 32)[0, 0].float().numpy()
    zero = (maps.conj() * ifft(kspace)).sum(1)
    lamda = 0.02 * float(zero.abs().max())
    options = {"weights": weights, "show_pbar": False, "max_iter": 20}
    if name == "zero_filled":
        found, expected = zero_filled(kspace), np.linalg.norm(sigpy.ifft(y, axes=(-2, -1)), axis=0)
    elif name == "cg_sense":
        found = cg_sense(kspace, maps, mask, regularization=0.03, iterations=20)
        expected = sigpy.mri.app.SenseRecon(y, coils, 0.03, **options).run()
    else:
        found = l1_wavelet(kspace, maps, mask, regularization=0.02, iterations=20, wavelet="db2")
        expected = sigpy.mri.app.L1WaveletRecon(y, coils, lamda, wave_name="db2", alpha=1, **options).run()
    assert_close(found[0], torch.from_numpy(expected), atol=1e-4, name=name)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("convention", [c for c in get_args(FFTConvention) if c != "centered-ortho"])
def test_every_convention_gives_the_same_image(name: str, convention: FFTConvention) -> None:
    options = {} if name == "zero_filled" else {"iterations": 15}
    kspace, maps, mask, _ = scan()
    expected = BASELINES[name](kspace, maps, mask, **options)
    kspace, maps, mask, _ = scan(convention)
    found = BASELINES[name](kspace, maps, mask, fft=convention, **options)
    if convention.startswith("uncentered"):
        found = torch.fft.fftshift(found, dim=(1, 2))
    assert_close(found, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", BASELINES)
def test_scales_with_the_data_item_by_item(name: str) -> None:
    options = {} if name == "zero_filled" else {"iterations": 15}
    kspace, maps, mask, _ = scan(batch=2)
    both = BASELINES[name](kspace, maps, mask, **options)
    assert both.shape == (2, 40, 32)
    assert_close(both[1], 2 * both[0], atol=2e-4)
    thousand = BASELINES[name](1000 * kspace[:1], maps[:1], mask, **options)
    assert_close(thousand[0], 1000 * both[0], atol=0.1)


def test_each_step_up_pays() -> None:
    kspace, maps, mask, image = scan()
    psnr = {
        name: scale_invariant_metrics(image.abs().numpy(), baseline(kspace, maps, mask).abs().numpy())["psnr"]
        for name, baseline in BASELINES.items()
    }
    assert psnr["cg_sense"] > psnr["zero_filled"] + 3
    assert psnr["l1_wavelet"] > psnr["cg_sense"] + 1.5


def test_repeats_bit_for_bit_and_leaves_the_global_generator_alone() -> None:
    kspace, maps, mask, _ = scan()
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    for baseline in BASELINES.values():
        assert torch.equal(baseline(kspace, maps, mask), baseline(kspace, maps, mask))
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def test_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    kspace, maps, mask, _ = scan()
    for baseline in BASELINES.values():
        baseline(kspace, maps, mask)
    assert capfd.readouterr() == ("", "")
