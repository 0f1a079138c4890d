"""Classical reconstructions: against closed forms, direct calls of SigPy, and every Fourier convention."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recurra.core.testing import assert_close
from recurra.mri import Undersampling, evaluate, reconstruct
from recurra.mri.baselines import BASELINES, _Basis, cg_sense, l1_wavelet, noise_level, zero_filled
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


def test_cg_sense_equals_sigpy() -> None:
    import sigpy.mri.app

    kspace, maps, mask, _ = scan()
    weights = mask.expand(1, 1, 40, 32)[0, 0].float().numpy()
    app = sigpy.mri.app.SenseRecon(kspace[0].numpy(), maps[0].numpy(), 0.03, weights=weights, show_pbar=False)
    assert_close(cg_sense(kspace, maps, mask, regularization=0.03)[0], torch.from_numpy(app.run()), atol=1e-4)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "db4", "sym4"])
@pytest.mark.parametrize("size", [(16, 16), (40, 32), (41, 33), (230, 180)])
def test_wavelet_basis_is_orthogonal(wavelet: str, size: tuple[int, int]) -> None:
    basis = _Basis.of(wavelet, *size)
    assert all(0 <= big - small < basis.period for big, small in zip(basis.shape, size, strict=True))
    x = torch.randn(2, *basis.shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    coefficients = basis.analysis(x)
    assert_close(basis.synthesis(coefficients), x, atol=1e-10)
    assert_close(coefficients.abs().square().sum((1, 2)), x.abs().square().sum((1, 2)), rtol=1e-10)


def test_wavelet_basis_is_that_of_pywavelets() -> None:
    import pywt

    x = torch.randn(1, 40, 32, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    expected = pywt.coeffs_to_array(pywt.wavedec2(x[0].numpy(), "db2", mode="periodization", level=1))[0]
    basis = _Basis.of("db2", 40, 32)
    found = replace(basis, matrices=basis.matrices[:1]).analysis(x.roll((1, 1), (1, 2)))[0].abs()
    # Where a periodic basis begins is each library's own affair.
    for block in product((slice(0, 20), slice(20, 40)), (slice(0, 16), slice(16, 32))):
        ordered = torch.from_numpy(np.sort(np.abs(expected[block]), axis=None))
        assert_close(found[block].flatten().sort().values, ordered, atol=1e-4)


def test_compressed_sensing_of_full_sampling_is_the_image_with_its_wavelets_shrunk() -> None:
    _, maps, mask, image = scan()
    kspace = fft(sense_expand(image, maps))
    found = l1_wavelet(kspace, maps, torch.ones_like(mask), regularization=0.1, cycle_spinning=False)
    basis = _Basis.of("db2", 40, 32)
    coefficients = basis.analysis(image)
    shrunk = coefficients * (1 - 0.1 * image.abs().max() / coefficients.abs()).clamp_min(0)
    assert_close(found, basis.synthesis(shrunk), atol=1e-4)


@pytest.mark.parametrize("wavelet", ["db2", "db4"])  # whose levels divide the image: a minimum over its pixels alone
def test_compressed_sensing_fulfils_the_conditions_of_its_minimum(wavelet: str) -> None:
    kspace, maps, mask, _ = (z.to(torch.complex128) if z.is_complex() else z for z in scan())
    options: Any = {"regularization": 0.02, "wavelet": wavelet, "cycle_spinning": False}
    x = l1_wavelet(kspace, maps, mask, iterations=1000, **options)
    basis = _Basis.of(wavelet, 40, 32)
    weight = 0.02 * (maps.conj() * ifft(kspace)).sum(1).abs().max()
    gradient = basis.analysis((maps.conj() * ifft(fft(sense_expand(x, maps)) * mask - kspace)).sum(1))
    coefficients = basis.analysis(x)
    used = coefficients.abs() > 1e-9 * coefficients.abs().max()
    assert 0.02 < used.double().mean() < 0.6
    assert gradient.abs().max() < 1.0001 * weight  # where a coefficient is zero, the data do not insist
    assert_close(gradient[used], -weight * torch.sgn(coefficients[used]), atol=1e-3 * float(weight))
    # After the iterations of everyday use nothing is left that could be seen.
    everyday = l1_wavelet(kspace, maps, mask, **options)
    assert (everyday - x).norm() < 0.01 * x.norm()


def test_cycle_spinning_pays() -> None:
    kspace, maps, mask, image = cut_scan()
    moving, fixed = (l1_wavelet(kspace, maps, mask, cycle_spinning=choice).abs().numpy() for choice in (True, False))
    truth = image.abs().numpy()
    assert psnr(truth, moving) > psnr(truth, fixed) + 0.5


@pytest.mark.parametrize("size", [(1, 8), (7, 9), (33, 41)])
@pytest.mark.parametrize("name", ["cg_sense", "l1_wavelet"])
def test_sizes_that_no_wavelet_divides_and_data_of_nothing(name: str, size: tuple[int, int]) -> None:
    image = torch.randn(2, *size, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    maps, mask = torch.full((1, 3, *size), 3**-0.5 + 0j), torch.ones(1, 1, *size, dtype=torch.bool)
    solve: Any = BASELINES[name]
    found = solve(fft(sense_expand(image, maps)), maps, mask, regularization=1e-4)
    assert_close(found, image, atol=1e-2)
    assert not solve(torch.zeros(2, 3, *size, dtype=torch.complex64), maps, mask).any()


def test_biorthogonal_wavelets_are_refused() -> None:
    kspace, maps, mask, _ = scan()
    with pytest.raises(
        ValueError, match=r"wavelet must be an orthogonal one, such as haar, db4 or sym4; got 'bior4.4'"
    ):
        l1_wavelet(kspace, maps, mask, wavelet="bior4.4")


@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_noise_is_measured_in_the_outermost_samples(sigma: float) -> None:
    generator = torch.Generator().manual_seed(5)
    signal = torch.zeros(2, 4, 64, 48, dtype=torch.complex64)
    signal[..., 28:36, 20:28] = 30
    noise = 2**0.5 * sigma * torch.randn(signal.shape, dtype=torch.complex64, generator=generator)
    mask = torch.rand(2, 1, 64, 48, generator=generator) < 0.5
    samples = torch.fft.ifftshift((signal + noise) * mask, dim=(-2, -1))
    found = noise_level(samples, torch.fft.ifftshift(mask, dim=(-2, -1)))
    assert_close(found, torch.full((2,), sigma), rtol=0.1)
    assert noise_level(torch.zeros_like(samples), mask).tolist() == [0, 0]


@pytest.mark.parametrize(("name", "least", "most"), [("cg_sense", 0.005, 1.0), ("l1_wavelet", 0.002, 0.2)])
def test_the_weight_follows_the_noise_if_none_is_given(name: str, least: float, most: float) -> None:
    solve: Any = BASELINES[name]
    kspace, maps, mask, _ = cut_scan(0)
    radius = torch.hypot(torch.linspace(-1, 1, 40)[:, None], torch.linspace(-1, 1, 32))
    blurred = kspace * torch.exp(-((4 * radius) ** 2))  # nothing outside, no noise
    assert torch.equal(solve(blurred, maps, mask), solve(blurred, maps, mask, regularization=least))
    kspace, maps, mask, image = cut_scan(0.1)
    peak = (maps.conj() * ifft(kspace)).sum(1).abs().max()
    weight = most * 0.1 / 2**0.5 / float(peak)
    assert weight > 1.5 * least
    truth, chosen = image.abs().numpy(), solve(kspace, maps, mask)
    assert_close(chosen, solve(kspace, maps, mask, regularization=weight), atol=0.05 * float(chosen.abs().max()))
    fixed = solve(kspace, maps, mask, regularization=least)
    assert psnr(truth, chosen.abs().numpy()) > psnr(truth, fixed.abs().numpy()) + 0.5


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
