"""Classical reconstructions: against closed forms, direct calls of SigPy, and every Fourier convention."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recurra.core.testing import assert_close
from recurra.mri import Undersampling, evaluate, reconstruct
from recurra.mri.baselines import BASELINES, cg_sense, l1_wavelet, zero_filled
from recurra.mri.inference import Reconstruction
from recurra.mri.metrics import fastmri_metrics, psnr, scale_invariant_metrics
from recurra.mri.models import CIRIM, DirectRIM, RecurrentVarNet
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


# --- where the maps are zero


def cut_scan(noise: float = 0.02) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A noisy scan whose maps are zero outside the object, as ESPIRiT's are."""
    kspace, maps, mask, image = scan()
    generator = torch.Generator().manual_seed(7)
    kspace = kspace + noise * mask * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    return kspace, maps * (image != 0)[:, None], mask, image


@pytest.mark.parametrize("name", ["cg_sense", "l1_wavelet"])
@pytest.mark.parametrize("convention", get_args(FFTConvention))
def test_no_solver_puts_anything_where_the_maps_are_zero(name: str, convention: FFTConvention) -> None:
    _, maps, mask, image = scan(convention)
    maps = maps * (image != 0)[:, None]
    kspace = fft(sense_expand(image, maps), convention) * mask
    kspace = kspace + 0.02 * mask * torch.randn(kspace.shape, generator=torch.Generator().manual_seed(7))
    found = BASELINES[name](kspace, maps, mask, fft=convention, iterations=15)
    assert found[image == 0].abs().max() == 0
    assert found[image != 0].abs().min() > 0


def test_compressed_sensing_is_not_judged_by_what_its_wavelets_leave_outside_the_object() -> None:
    import sigpy.mri.app

    kspace, maps, mask, image = cut_scan()
    weights = mask.expand(1, 1, 40, 32)[0, 0].float().numpy()
    lamda = 0.002 * float((maps.conj() * ifft(kspace)).sum(1).abs().max())
    free = sigpy.mri.app.L1WaveletRecon(
        kspace[0].numpy(), maps[0].numpy(), lamda, weights=weights, alpha=1, show_pbar=False
    ).run()
    truth = image.abs().numpy()
    assert psnr(truth, l1_wavelet(kspace, maps, mask).abs().numpy()) > psnr(truth, np.abs(free)[None]) + 6


def test_the_network_is_cut_like_the_solvers_and_its_own_output_is_not(make_checkpoint: Callable[..., Path]) -> None:
    kspace, maps, mask, image = cut_scan()
    how = Reconstruction(make_checkpoint(), device="cpu")
    with torch.inference_mode():
        used, raw = how.solve(kspace, maps, mask), how.model(kspace, maps, mask)
    assert raw[image == 0].abs().max() > 0
    assert used[image == 0].abs().max() == 0
    assert_close(used[image != 0], raw[image != 0], atol=1e-6)


@pytest.mark.parametrize(
    ("model", "cut"),
    [
        (CIRIM(cascades=1), True),
        (CIRIM(cascades=1, data_consistency="explicit"), True),
        (CIRIM(cascades=1, data_consistency="explicit", combine="rss"), False),
        (CIRIM(cascades=1, sensitivity_net="normunet"), False),
        (DirectRIM(hidden=8), True),
        (DirectRIM(hidden=8, refine="unet"), False),
        (RecurrentVarNet(steps=1, hidden=8, refine="none"), False),
    ],
)
def test_which_networks_give_images_that_the_maps_combine(model: Any, cut: bool) -> None:
    assert model.combines_by_maps is cut


def test_reconstruct_writes_the_image_that_evaluate_scores(sample: Path, tmp_path: Path) -> None:
    (file,) = (sample / "val").iterdir()
    maps = np.zeros((1, 3, 48, 40), np.complex64)  # of another size than the object: what is cut shows
    maps[..., 10:38, 8:32] = 3**-0.5
    with h5py.File(tmp_path / "maps.h5", "w") as given:
        given["maps"] = maps
    options: Any = {"maps": str(tmp_path / "maps.h5"), "undersampling": Undersampling("equispaced_fraction", 4.0, 0.2)}
    options |= {"device": "cpu", "quiet": True}
    (result,) = reconstruct("rim-small", file, tmp_path / "out", preview=False, **options)
    with h5py.File(result.outputs[0]) as written, h5py.File(file) as given:
        image, truth = written["reconstruction"][()], given["reconstruction_rss"][()]
    inside = np.abs(maps).max(1)[:, 4:44] > 0  # the scanner shows 40 x 40
    assert image[~inside].max() == 0 < image[inside].min()
    table = evaluate("rim-small", file, baselines=["l1_wavelet"], **options)
    scores = {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}
    expected = fastmri_metrics(truth, image)
    for name, value in expected.items():
        assert scores["CIRIM"][name] == pytest.approx(value, rel=1e-5)
