"""Prepared models give the images of the plain ones, or leave the work to them."""

import pytest
import torch
from torch import Tensor, nn

from recurra.core.prepared import Prepared, prepare
from recurra.kernels import use_backend
from recurra.mri.models import CIRIM, MODELS
from recurra.mri.models.prepared_operators import DataGradient, MaskedFourier
from recurra.mri.operators import FFTConvention, data_gradient, fft, ifft

RecurrentVarNet, DirectRIM = MODELS["RecurrentVarNet"], MODELS["DirectRIM"]
CONVENTIONS = list(FFTConvention.__args__)
MASKS = {"columns": (1, 1, 1, 18), "rows": (1, 1, 13, 1), "plane": (1, 1, 13, 18), "each": (2, 1, 13, 18)}
# Float32, relative to the largest value of the image.
TOLERANCE = 1e-5
RIM = {"conv_filters": (16, 16, 2), "recurrent_filters": (16, 16, 0), "cascades": 2}


def sample(mask: str = "columns", *, batch: int = 2, maps: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    kspace = torch.randn(batch, 3, 13, 18, dtype=torch.complex64, generator=generator)
    sensitivity = torch.randn(maps or batch, 3, 13, 18, dtype=torch.complex64, generator=generator)
    sensitivity /= sensitivity.abs().square().sum(1, keepdim=True).sqrt()
    sampled = torch.rand(MASKS[mask], generator=generator) < 0.4
    return torch.where(sampled, kspace, 0), sensitivity, sampled


def with_weights(model: nn.Module) -> nn.Module:
    """Weights that keep the size of features, so that every layer counts, and biases that are not zero."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.dim() == 4 and parameter.shape[0] > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def assert_prepared(model: nn.Module, data: tuple[Tensor, Tensor, Tensor], **options: object) -> None:
    prepared = model.prepared()
    assert isinstance(prepared, Prepared)
    assert prepared.reason is None
    copies = [t.clone() for t in data]
    with torch.no_grad(), use_backend("reference"):
        want = model(*data, **options)
    got = prepared(*data, **options)
    again = prepared(*data, **options)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert not got.requires_grad
    torch.testing.assert_close(got, want, atol=TOLERANCE * want.abs().max().item(), rtol=0)
    assert torch.equal(got, again)
    assert all(torch.equal(a, b) for a, b in zip(copies, data, strict=True))


@pytest.mark.parametrize("cell", ["gru", "mgu", "indrnn"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_cirim(cell, mask, convention):
    assert_prepared(with_weights(CIRIM(cell=cell, fft=convention, **RIM)), sample(mask))


@pytest.mark.parametrize(
    "options",
    [
        {"data_consistency": "explicit"},
        {"data_consistency": "explicit", "semantics": "atommic"},
        {"semantics": "atommic"},
        {"keep_prediction": False},
        {"recurrent_kernels": (3, 3, 0)},
        {"recurrent_kernels": (5, 3, 0), "recurrent_dilations": (1, 2, 0)},
        {"combine": "rss"},
        {"fft_dim": 1},
        {"recurrent_filters": (16, 0, 0)},
        {"recurrent_bias": (False, True, False), "conv_bias": (False, True, True)},
        {"steps": 3, "round_steps": False},
    ],
)
@pytest.mark.parametrize("mask", ["columns", "plane"])
def test_cirim_options(options, mask):
    assert_prepared(with_weights(CIRIM(cell="gru", **(RIM | options))), sample(mask))


def test_cirim_arguments():
    model = with_weights(CIRIM(cell="indrnn", **RIM))
    data = sample(maps=1)
    assert_prepared(model, data)
    assert_prepared(model, data, sigma=2.5)
    assert_prepared(model, data, image=torch.randn(2, 13, 18, dtype=torch.complex64))
    assert_prepared(model, data, image=torch.randn(1, 13, 18, dtype=torch.complex64))


def test_cirim_with_learned_maps():
    model = CIRIM(cell="indrnn", sensitivity_net="normunet", sensitivity_filters=4, sensitivity_pools=2, **RIM)
    assert_prepared(with_weights(model), sample())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalized": True},
        {"initializer": "none"},
        {"initializer": "zero_filled"},
        {"initializer": "input_image"},
        {"initializer_multiscale": 1},
        {"shared": True},
        {"refine": "unet", "refine_filters": 4, "refine_pools": 2},
        {"fft_dim": 1},
        {"fft": "uncentered-ortho"},
    ],
)
@pytest.mark.parametrize("mask", ["columns", "each"])
def test_recurrentvarnet(options, mask):
    options = {"refine": "none"} | options
    given = {"image": torch.randn(2, 13, 18, dtype=torch.complex64)} if "input_image" in options.values() else {}
    model = with_weights(RecurrentVarNet(steps=3, hidden=16, layers=3, **options))
    assert_prepared(model, sample(mask), **given)


def test_recurrentvarnet_arguments():
    model = with_weights(RecurrentVarNet(steps=3, hidden=16, layers=1, refine="none", initializer="input_image"))
    kspace, maps, mask = sample()
    with pytest.raises(ValueError, match="needs an image"):
        model.prepared()(kspace, maps, mask)
    padding = torch.zeros(1, 1, 1, 18, dtype=torch.bool)
    padding[..., :2] = True
    image = torch.randn(2, 13, 18, dtype=torch.complex64)
    assert_prepared(model, (kspace, maps, mask), image=image, padding=padding)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalized": True},
        {"skip": False},
        {"learned_initializer": True},
        {"dense_connect": 1},
        {"shared": False, "depth": 3},
        {"start": "zero_filled"},
        {"likelihood_scale": 0.5},
        {"refine": "unet", "refine_filters": 4, "refine_pools": 2},
    ],
)
@pytest.mark.parametrize("mask", ["columns", "plane"])
def test_direct_rim(options, mask):
    assert_prepared(with_weights(DirectRIM(hidden=16, length=4, **options)), sample(mask))


def test_direct_rim_arguments():
    model = with_weights(DirectRIM(hidden=16, length=2, start="input_kspace"))
    data = sample()
    assert_prepared(model, data, initial_kspace=torch.randn(2, 3, 13, 18, dtype=torch.complex64))
    assert_prepared(model, data, image=torch.randn(2, 13, 18, dtype=torch.complex64), likelihood_scale=2.0)
    with pytest.raises(ValueError, match="needs a k-space"):
        model.prepared()(*data)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("axes", [1, 2])
def test_data_gradient(convention, mask, axes):
    kspace, maps, sampled = sample(mask)
    kspace = torch.randn_like(kspace)  # values where nothing was sampled must not count
    image = torch.randn(2, 13, 18, dtype=torch.complex64)
    fourier = MaskedFourier(sampled, convention, axes)
    want = 0.5 * data_gradient(image, kspace, maps, sampled, convention, axes)
    got = DataGradient(fourier, kspace, maps, 0.5)(image)
    torch.testing.assert_close(got, want, atol=2e-6 * want.abs().max().item(), rtol=0)


@pytest.mark.parametrize(("mask", "axes"), [("columns", [-1]), ("rows", [-2]), ("plane", [-2, -1])])
def test_only_undersampled_axes_are_transformed(mask, axes):
    _, _, sampled = sample(mask)
    assert MaskedFourier(sampled, "centered-ortho", 2).axes == axes
    # A pattern of columns that is written out for every row is one of columns.
    assert MaskedFourier(sampled.expand(1, 1, 13, 18).contiguous(), "centered-ortho", 2).axes == axes
    full = MaskedFourier(torch.ones(1, 1, 1, 1, dtype=torch.bool), "centered-ortho", 2)
    coils = torch.randn(3, 13, 18, dtype=torch.complex64)
    assert full.axes == []
    assert torch.equal(full(coils.clone(), 0), coils)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_masked_fourier_is_the_operator(convention):
    _, _, sampled = sample("plane")
    coils = torch.randn(3, 13, 18, dtype=torch.complex64)
    want = ifft(torch.where(sampled[0], fft(coils, convention), 0), convention)
    got = MaskedFourier(sampled, convention, 2)(coils.clone(), 0)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: CIRIM(cell="gru", **RIM).double(), "its parameters are not float32 on the CPU"),
        (lambda: DirectRIM(hidden=8, length=2, instance_norm=True), "instance normalisation between the gates"),
    ],
)
def test_the_plain_form_stands_in(model, reason):
    plain = with_weights(model())
    prepared = prepare(plain)
    assert prepared.reason == reason
    kind = torch.complex128 if "float32" in reason else torch.complex64
    kspace, maps, mask = sample()
    data = kspace.to(kind), maps.to(kind), mask
    with torch.no_grad():
        assert torch.equal(prepared(*data), plain(*data))


def test_autocast_is_honoured_by_the_plain_form():
    model, data = with_weights(CIRIM(cell="gru", **RIM)), sample()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prepare(model)(*data), model(*data))


def test_other_dimensions_are_left_to_the_plain_form():
    prepared = prepare(CIRIM(cell="gru", dim=1, **RIM))
    assert prepared.reason == "it has 1 spatial axes, the prepared form has 2"
    kspace, mask = torch.randn(1, 3, 18, dtype=torch.complex64), torch.rand(1, 1, 18) < 0.5
    assert prepared(kspace, kspace, mask).shape == (1, 18)


def test_double_input_goes_to_the_plain_form_and_bad_input_is_told():
    model = with_weights(RecurrentVarNet(steps=1, hidden=16, layers=1, refine="none"))
    kspace, maps, mask = sample()
    with pytest.raises(ValueError, match=r"^mask has type torch.float32; expected bool"):
        prepare(model)(kspace, maps, mask.float())
    with pytest.raises(ValueError, match=r"^sensitivity has shape"):
        prepare(model)(kspace, maps[:, :2], mask)
