from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from recurra.core.nn import Conv2dGRU
from recurra.core.testing import assert_close
from recurra.mri import operators
from recurra.mri.models import CIRIM, MODELS, DirectRIM, NormUnet, Reconstructor, RecurrentVarNet, RIMBlock, Unet
from recurra.mri.models.recurrentvarnet import RecurrentVarNetBlock
from recurra.mri.models.unet import LearnedSensitivity, SensitivityRefinement, sampled_center
from recurra.mri.models.varnet import VarNet

Inputs = tuple[Tensor, Tensor, Tensor]

SMALL_CIRIM: dict[str, Any] = {
    "conv_filters": (3, 3, 2),
    "recurrent_filters": (3, 3, 0),
    "cascades": 2,
    "steps": 2,
    "round_steps": False,
}
SMALL_INITIALIZER: dict[str, Any] = {
    "initializer_channels": (2, 3),
    "initializer_dilations": (1, 2),
    "initializer_multiscale": 2,
}
SMALL_RVN: dict[str, Any] = {"steps": 2, "hidden": 3, "layers": 2, "refine_filters": 2, "refine_pools": 1}
SMALL_RVN |= SMALL_INITIALIZER
SMALL_RIM: dict[str, Any] = {"hidden": 3, "length": 2}

TINY: dict[str, Callable[[], Reconstructor]] = {
    "gru": lambda: CIRIM(**SMALL_CIRIM, cell="gru"),
    "mgu": lambda: CIRIM(**SMALL_CIRIM, cell="mgu", semantics="atommic"),
    "indrnn": lambda: CIRIM(**SMALL_CIRIM, cell="indrnn"),
    "explicit": lambda: CIRIM(**SMALL_CIRIM, data_consistency="explicit", semantics="atommic"),
    "learned-maps": lambda: CIRIM(
        **SMALL_CIRIM, sensitivity_net="normunet", sensitivity_filters=2, sensitivity_pools=1
    ),
    "rvn": lambda: RecurrentVarNet(**SMALL_RVN),
    "rvn-normalized": lambda: RecurrentVarNet(**SMALL_RVN | {"normalized": True, "shared": True, "refine": "none"}),
    "rim": lambda: DirectRIM(**SMALL_RIM),
    "rim-init": lambda: DirectRIM(
        **SMALL_RIM | SMALL_INITIALIZER, learned_initializer=True, shared=False, start="zero_filled", skip=False
    ),
}
every_model = pytest.mark.parametrize("make", TINY.values(), ids=TINY.keys())


def inputs(
    batch: int = 1,
    shape: tuple[int, ...] = (8, 7),
    *,
    coils: int = 3,
    dtype: torch.dtype = torch.complex128,
    seed: int = 0,
) -> Inputs:
    """K-space of a random image, sampled in about half the columns and the central ones, with maps of norm 1."""
    random = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, coils, *shape, dtype=dtype, generator=random)
    maps = operators.divide_nonzero(maps, operators.rss(maps))
    image = torch.randn(batch, *shape, dtype=dtype, generator=random)
    middle = torch.arange(shape[-1]).sub(shape[-1] // 2).abs() <= 1
    mask = (torch.rand(shape[-1], generator=random) < 0.4) | middle
    mask = mask.reshape(1, 1, *(1,) * (len(shape) - 1), -1)
    kspace = operators.fft(operators.sense_expand(image, maps), dim=len(shape))
    return torch.where(mask, kspace, 0), maps, mask


def tiny(make: Callable[[], Reconstructor]) -> Reconstructor:
    """The model in double precision with weights that are not small, so that every part matters."""
    torch.manual_seed(0)
    model = make().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def uncut(model: Reconstructor) -> Reconstructor:
    """The model without the paper's cut between cascades, which is there to give wrong gradients."""
    if isinstance(model, CIRIM):
        model.semantics = "atommic"
    return model


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- what the papers and the authors' code give ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "cell", "expected"),
    [
        (64, "gru", 94_080),
        (64, "mgu", 77_568),
        (64, "indrnn", 52_992),
        (128, "gru", 360_192),
        (128, "mgu", 294_400),
        (128, "indrnn", 196_096),
    ],
)
def test_rim_parameters(filters: int, cell: Any, expected: int) -> None:
    layers: dict[str, Any] = {"conv_filters": (filters, filters, 2), "recurrent_filters": (filters, filters, 0)}
    assert count(RIMBlock(**layers, cell=cell)) == expected
    assert count(CIRIM(**layers, cell=cell, cascades=1)) == expected


@pytest.mark.parametrize(("filters", "cascades", "expected"), [(64, 5, 264_960), (64, 8, 423_936), (128, 5, 980_480)])
def test_cirim_parameters(filters: int, cascades: int, expected: int) -> None:
    model = CIRIM(conv_filters=(filters, filters, 2), recurrent_filters=(filters, filters, 0), cascades=cascades)
    assert count(model) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 6_918_424),
        ({"hidden": 96, "layers": 3}, 2_827_320),
        ({"steps": 11, "layers": 3}, 6_727_841),
        ({"initializer": "none"}, 6_770_712),
        ({"shared": True}, 994_051),
        ({"steps": 15, "hidden": 64, "initializer_multiscale": 1}, 3_296_045),
        ({"hidden": 64, "initializer_multiscale": 1}, 1_796_120),
    ],
)
def test_recurrentvarnet_parameters(options: dict[str, Any], expected: int) -> None:
    assert count(RecurrentVarNet(**{"refine": "none"} | options)) == expected


def test_other_parameters() -> None:
    assert count(DirectRIM()) == 360_194
    assert count(SensitivityRefinement()) == 484_898
    assert count(RecurrentVarNet()) == 6_918_424 + 484_898


def test_steps_are_rounded_up_to_eights() -> None:
    assert [CIRIM(steps=steps).steps for steps in (1, 8, 9)] == [8, 8, 16]
    assert CIRIM(steps=3, round_steps=False).steps == 3


@pytest.mark.parametrize(("cascades", "steps"), [(1, 8), (2, 3)])
def test_accumulated_weights_grow_tenfold(cascades: int, steps: int) -> None:
    model = CIRIM(**SMALL_CIRIM | {"cascades": cascades, "steps": steps}).double()
    pairs = model.estimates(*inputs())
    # Of one cascade the first weight is the last: 0.1.
    w = torch.tensor([0.1]) if cascades == 1 else torch.tensor([0.1, 1.0]) / 2
    v = 10 ** torch.linspace(-1, 0, steps) / steps
    assert_close(torch.tensor([weight for weight, _ in pairs]), torch.outer(w, v).flatten(), rtol=1e-6)
    assert pairs[-1][1].equal(model(*inputs()))


def test_without_accumulation_the_last_estimate_counts() -> None:
    model = CIRIM(**SMALL_CIRIM, accumulate=False).double()
    ((weight, image),) = model.estimates(*inputs())
    assert weight == 1
    assert image.equal(model(*inputs()))


def test_paper_cuts_the_gradient_between_cascades_and_atommic_does_not() -> None:
    for semantics in ("paper", "atommic"):
        model = tiny(lambda semantics=semantics: CIRIM(**SMALL_CIRIM, semantics=semantics))  # type: ignore[misc]
        model(*inputs()).abs().sum().backward()
        reached = [any(p.grad is not None for p in block.parameters()) for block in model.cascades]  # type: ignore[union-attr]
        assert reached == [semantics == "atommic", True]


def test_explicit_data_consistency() -> None:
    torch.manual_seed(0)
    y, maps, mask = inputs()
    block = RIMBlock(steps=1, data_consistency="explicit").double()
    with torch.no_grad():
        block.dc_weight.fill_(0.5)
    (k,), _ = block(y, y, maps, mask)
    (moved,), _ = block(3 * y, y, maps, mask, image=operators.sense_reduce(operators.ifft(y), maps))
    block.data_consistency = "implicit"
    (image,), _ = block(y, y, maps, mask)
    # In a first block the correction vanishes; in others half of the way from the data is taken back.
    prediction = operators.fft(operators.sense_expand(image, maps))
    assert_close(k, y - prediction, atol=1e-12)
    assert_close(moved, y - 0.5 * 2 * y - prediction, atol=1e-12)


def test_given_states_and_image_continue_a_run() -> None:
    torch.manual_seed(0)
    args = inputs()
    whole = CIRIM(**SMALL_CIRIM | {"steps": 4, "cascades": 1}).double()
    half = CIRIM(**SMALL_CIRIM | {"steps": 2, "cascades": 1}).double()
    half.load_state_dict(whole.state_dict())
    first, hidden = half.trajectory(*args)
    second, _ = half.trajectory(*args, image=first[-1][-1], hidden=hidden)
    assert_close(second[-1][-1], whole(*args), atol=1e-12)


def test_hidden_layers_may_be_left_out() -> None:
    options: dict[str, Any] = {
        "conv_filters": (4, 5, 0, 2),
        "conv_kernels": (3, 3, 0, 3),
        "conv_dilations": (1, 1, 0, 1),
        "conv_bias": (True, True, False, False),
        "recurrent_filters": (0, 6, 7, 0),
        "recurrent_kernels": (0, 1, 3, 0),
        "recurrent_dilations": (0, 1, 2, 0),
        "recurrent_bias": (False, True, True, False),
    }
    block = RIMBlock(**options, steps=2).double()
    y, maps, mask = inputs()
    images, hidden = block(y, y, maps, mask)
    assert images[-1].shape == (1, 8, 7)
    assert [h.shape[1] for h in hidden] == [6, 7]


# --- laws that every model obeys -------------------------------------------------------------------------------------


@every_model
def test_gradients(make: Callable[[], Reconstructor]) -> None:
    model = uncut(tiny(make))
    y, maps, mask = inputs(shape=(6, 5), coils=2)
    y.requires_grad_()
    maps.requires_grad_()

    def loss(y: Tensor, maps: Tensor) -> Tensor:
        return model(y, maps, mask).abs().square()

    # Of complex arguments every part is perturbed along a random direction: fast, and as telling.
    assert torch.autograd.gradcheck(loss, (y, maps), fast_mode=True, atol=1e-4)


@every_model
def test_weights_have_gradients(make: Callable[[], Reconstructor]) -> None:
    model = uncut(tiny(make))
    y, maps, mask = inputs(shape=(6, 5), coils=2)
    pairs = model.estimates(y, maps, mask)
    torch.stack([w * x.abs().square().mean() for w, x in pairs]).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        grad = grads[name]
        if grad is None:
            assert "dc_weight" in name, name
            continue
        assert grad.isfinite().all(), name
        # One directional derivative a tensor, against a central difference.
        direction = torch.randn(parameter.shape, dtype=parameter.dtype, generator=torch.Generator().manual_seed(1))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-6 * direction)
                pairs = model.estimates(y, maps, mask)
                values.append(torch.stack([w * x.abs().square().mean() for w, x in pairs]).sum())
                parameter.sub_(sign * 1e-6 * direction)
        expected = (values[0] - values[1]) / 2e-6
        assert_close((grad * direction).sum(), expected, rtol=1e-3, atol=1e-5, name=name)


@every_model
def test_items_of_a_batch_do_not_meet(make: Callable[[], Reconstructor]) -> None:
    model = tiny(make)
    y, maps, mask = inputs(batch=3)
    together = model(y, maps, mask)
    assert together.shape == (3, 8, 7)
    assert_close(model(y[1:2], maps[1:2], mask), together[1:2], atol=1e-10)


@every_model
def test_masks_broadcast(make: Callable[[], Reconstructor]) -> None:
    model = tiny(make)
    y, maps, mask = inputs(batch=2)
    assert_close(model(y, maps, mask.expand(2, 1, 8, 7)), model(y, maps, mask), atol=1e-12)


@every_model
def test_coils_may_come_in_any_order(make: Callable[[], Reconstructor]) -> None:
    model = tiny(make)
    y, maps, mask = inputs()
    order = torch.tensor([2, 0, 1])
    assert_close(model(y[:, order], maps[:, order], mask), model(y, maps, mask), atol=1e-10)


@pytest.mark.parametrize("model", [RecurrentVarNet, DirectRIM])
def test_normalized_networks_follow_scale(model: Any) -> None:
    torch.manual_seed(0)
    small = {"steps": 2, "layers": 2, "initializer": "none", "refine": "none"} if model is RecurrentVarNet else {}
    network = model(hidden=3, normalized=True, **small).double()
    y, maps, mask = inputs()
    assert_close(network(5 * y, maps, mask), 5 * network(y, maps, mask), atol=1e-9)


@every_model
def test_checkpointing_changes_no_numbers(make: Callable[[], Reconstructor]) -> None:
    model = tiny(make)
    args = inputs()
    results = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        model.zero_grad()
        pairs = model.estimates(*args)
        torch.stack([w * x.abs().square().mean() for w, x in pairs]).sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([*(x for _, x in pairs), *grads])
    for kept, recomputed in zip(*results, strict=True):
        assert kept.equal(recomputed)


def test_checkpointing_of_a_single_cascade_goes_by_steps() -> None:
    model = tiny(lambda: CIRIM(**SMALL_CIRIM | {"cascades": 1, "steps": 4}))
    args = inputs()
    sizes = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        saved: dict[int, int] = {}

        def pack(x: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(*args)
        sizes.append(sum(saved.values()))
    assert sizes[1] < 0.5 * sizes[0]


@every_model
def test_half_precision_keeps_the_physics_in_single(make: Callable[[], Reconstructor]) -> None:
    model = tiny(make).float()
    args = inputs(dtype=torch.complex64)
    expected = model(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pairs = model.estimates(*args)
        loss = torch.stack([w * x.abs().square().mean() for w, x in pairs]).sum()
    found = pairs[-1][1]
    assert found.dtype == expected.dtype
    assert (found - expected).norm() < 0.1 * expected.norm()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_model
def test_checkpoints_round_trip(make: Callable[[], Reconstructor], tmp_path: Path) -> None:
    model = tiny(make)
    model.save_pretrained(tmp_path)
    loaded = Reconstructor.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert loaded(*inputs()).equal(model.eval()(*inputs()))


def test_models_by_name() -> None:
    assert {name: kind.__name__ for name, kind in MODELS.items()} == {name: name for name in MODELS}
    assert {"CIRIM", "RecurrentVarNet", "DirectRIM"} <= set(MODELS)


# --- other dimensions and conventions --------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["gru", "mgu", "indrnn"])
@pytest.mark.parametrize("shape", [(9,), (3, 6, 5)])
def test_cirim_in_one_and_three_dimensions(shape: tuple[int, ...], cell: Any) -> None:
    torch.manual_seed(0)
    dim: Any = len(shape)
    model = CIRIM(**SMALL_CIRIM, dim=dim, cell=cell).double()
    y, maps, mask = inputs(batch=2, shape=shape)
    image = model(y, maps, mask)
    assert image.shape == (2, *shape)
    assert_close(model(y[:1], maps[:1], mask), image[:1], atol=1e-10)


def test_slices_that_are_reconstructed_together_have_transforms_of_their_own() -> None:
    torch.manual_seed(0)
    model = CIRIM(**SMALL_CIRIM, dim=3, fft_dim=2).double()
    y, maps, mask = inputs(shape=(3, 6, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    # An update of zero leaves the zero-filled images of the slices.
    expected = torch.stack([operators.sense_reduce(operators.ifft(y[:, :, s]), maps[:, :, s]) for s in range(3)], dim=1)
    assert_close(model(y, maps, mask), expected, atol=1e-12)


@pytest.mark.parametrize("make", [TINY["indrnn"], TINY["rvn"], TINY["rim"]])
def test_recentered_and_centered_models_differ_by_the_k_space_alone(make: Callable[[], Reconstructor]) -> None:
    model = tiny(make)
    y, maps, mask = inputs(shape=(8, 6))
    corner = torch.fft.ifftshift(y, dim=(-2, -1)), maps, torch.fft.ifftshift(mask, dim=-1)
    config = model.config | {"initializer": "none"} if "initializer" in model.config else model.config
    centered, recentered = (
        type(model)(**config | {"fft": fft}).double() for fft in ("centered-ortho", "recentered-ortho")
    )
    recentered.load_state_dict(centered.state_dict())
    assert_close(recentered(*corner), centered(y, maps, mask), atol=1e-10)


# --- learned maps ----------------------------------------------------------------------------------------------------


def test_sampled_center_of_columns() -> None:
    def columns(text: str) -> Tensor:
        return torch.tensor([c == "1" for c in text])[None, None, None]

    for mask, expected in [
        ("0101111010", "0001111000"),
        ("1001110000", "0000110000"),
        ("000010000", "000010000"),
        ("0000000000", "0000010000"),
        ("1111111", "0111111"),
    ]:
        assert sampled_center(columns(mask)).flatten().tolist() == columns(expected).flatten().tolist(), mask


def test_sampled_center_of_rows_and_columns() -> None:
    mask = torch.zeros(1, 1, 8, 10, dtype=torch.bool)
    mask[..., 2:6, 3:7] = True
    mask[..., 0, 0] = True
    center = sampled_center(mask)
    assert center.sum() == 16
    assert center[..., 2:6, 3:7].all()


def test_learned_maps_use_the_centre_alone_and_have_norm_one() -> None:
    torch.manual_seed(0)
    net = LearnedSensitivity(2, 1).double()
    y, _, mask = inputs(shape=(12, 10))
    maps = net(y, mask, "centered-ortho")
    assert_close(operators.rss(maps), torch.ones(1, 12, 10), atol=1e-10)
    outside = torch.where(sampled_center(mask), y, 7 * y)
    assert_close(net(outside, mask, "centered-ortho"), maps, atol=1e-12)
    compat = LearnedSensitivity(2, 1, compat_rss=True).double()
    compat.load_state_dict(net.state_dict())
    crooked = compat(y, mask, "centered-ortho")
    assert_close(operators.divide_nonzero(crooked, operators.rss(crooked)), maps, atol=1e-10)
    assert (operators.rss(crooked) - 1).abs().max() > 0.01


def test_refinement_leaves_a_single_coil_alone() -> None:
    maps = inputs(coils=1, dtype=torch.complex64)[1]
    assert SensitivityRefinement(2, 1)(maps).equal(maps)


def test_maps_are_refined_by_the_model_that_can() -> None:
    args = inputs()
    y, maps, mask = args
    plain, refining = tiny(TINY["indrnn"]), tiny(TINY["rvn"])
    assert plain.refine_maps(y, maps, mask) is maps
    refined = refining.refine_maps(y, maps, mask)
    assert_close(operators.rss(refined), torch.ones(1, 8, 7), atol=1e-10)
    assert (refined - maps).abs().max() > 0.1


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (5, 40)])
def test_norm_unet_keeps_sizes_and_follows_scale(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = NormUnet(2, 2).double()
    x = torch.randn(2, 1, *size, dtype=torch.complex128)
    assert net(x).shape == x.shape
    assert_close(net(3 * x), 3 * net(x), atol=1e-9)
    assert net(torch.zeros_like(x)).isfinite().all()


def test_unet_says_when_an_image_is_too_small() -> None:
    with pytest.raises(ValueError, match=r"^an image of 16 x 16 is too small for a U-Net of 4 poolings$"):
        Unet(2, 2, 4, 4)(torch.zeros(1, 2, 16, 16))


# --- other inputs ----------------------------------------------------------------------------------------------------


def test_padding_stays_zero() -> None:
    model = tiny(TINY["rvn"])
    y, maps, mask = inputs()
    padding = torch.zeros_like(mask)
    padding[..., :2] = True
    image = model(y, maps, mask, padding=padding)
    k = torch.where(padding, 0, model.trajectory(y, model.refine_maps(y, maps, mask), mask)[0][-1])  # type: ignore[operator]
    assert_close(image, operators.rss(model.to_image(k)), atol=1e-12)


def test_initial_images() -> None:
    y, maps, mask = inputs()
    image = torch.randn(1, 8, 7, dtype=torch.complex128)
    network = RecurrentVarNet(**SMALL_RVN | {"refine": "none"}, initializer="input_image").double()
    sense = RecurrentVarNet(**SMALL_RVN | {"refine": "none"}).double()
    sense.load_state_dict(network.state_dict())
    zero_filled = operators.sense_reduce(operators.ifft(y), maps)
    assert_close(network(y, maps, mask, image=zero_filled), sense(y, maps, mask), atol=1e-10)
    with pytest.raises(ValueError, match=r"^initializer 'input_image' needs an image; pass image=$"):
        network(y, maps, mask)
    given, other = (DirectRIM(**SMALL_RIM, start=start).double() for start in ("input_image", "input_kspace"))
    other.load_state_dict(given.state_dict())
    k = operators.fft(operators.sense_expand(image, maps))
    assert_close(given(y, maps, mask, image=image), other(y, maps, mask, initial_kspace=k), atol=1e-10)
    with pytest.raises(ValueError, match=r"^start 'input_image' needs an image; pass image=$"):
        given(y, maps, mask)
    with pytest.raises(ValueError, match=r"^start 'input_kspace' needs a k-space; pass initial_kspace=$"):
        other(y, maps, mask)


def test_likelihood_scale() -> None:
    y, maps, mask = inputs()
    two, one = DirectRIM(**SMALL_RIM, likelihood_scale=2.0).double(), DirectRIM(**SMALL_RIM).double()
    one.load_state_dict(two.state_dict())
    assert two(y, maps, mask).equal(one(y, maps, mask, likelihood_scale=2.0))
    assert (two(y, maps, mask) - one(y, maps, mask)).abs().max() > 1e-3


def test_noise_below_one_counts_as_one() -> None:
    model = tiny(TINY["indrnn"])
    args = inputs()
    assert model(*args, sigma=0.3).equal(model(*args))
    assert not model(*args, sigma=2.0).equal(model(*args))
    assert model(*args, sigma=torch.tensor(2.0)).equal(model(*args, sigma=2.0))


def test_a_block_from_k_space_that_is_not_the_measured_one() -> None:
    torch.manual_seed(0)
    y, maps, mask = inputs()
    block = RecurrentVarNetBlock(3, 2).double()
    k, state = block(2 * y, y, maps, mask)
    assert state.shape == (1, 3, 8, 7, 2)
    with torch.no_grad():
        block.learning_rate.zero_()
    untouched, _ = block(2 * y, y, maps, mask)
    assert_close(untouched - k, torch.where(mask, y, 0), atol=1e-12)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_wrong_inputs_are_named() -> None:
    model = CIRIM(**SMALL_CIRIM)
    y, maps, mask = inputs(dtype=torch.complex64)
    sizes = "expected (1, 1, 8, 7), where any size may be 1 (kspace has shape (1, 3, 8, 7))"
    wrong: list[tuple[Inputs, str]] = [
        ((y[0], maps[0], mask), "kspace has shape (3, 8, 7); expected (batch, coil, height, width)"),
        ((y.real, maps, mask), "kspace has type torch.float32; expected complex64, see torch.view_as_complex"),
        ((y, maps[:, :2], mask), "sensitivity has shape (1, 2, 8, 7); expected that of kspace, (1, 3, 8, 7)"),
        ((y, maps, mask.float()), "mask has type torch.float32; expected bool, True where k-space was sampled"),
        ((y, maps, mask[..., :5]), f"mask has shape (1, 1, 1, 5); {sizes}"),
        ((y, maps, mask[0]), f"mask has shape (1, 1, 7); {sizes}"),
    ]
    for args, message in wrong:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            model.check(*args)
        assert str(caught.value) == message
    # Complex numbers as a trailing axis: what to do about it comes before the rank.
    with pytest.raises(ValueError, match=r"^kspace has type torch\.float32; .* see torch\.view_as_complex$"):
        model.check(torch.view_as_real(y), torch.view_as_real(maps), mask)


@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "prepared"])
@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        ("indrnn", {"image": torch.zeros(1, 7, 7) + 0j}, "image has shape (1, 7, 7); expected (2, 8, 7)"),
        ("indrnn", {"image": torch.zeros(3, 8, 7) + 0j}, "image has shape (3, 8, 7); expected (2, 8, 7)"),
        ("indrnn", {"image": torch.zeros(2, 3, 8, 7) + 0j}, "image has shape (2, 3, 8, 7); expected (2, 8, 7)"),
        ("rim", {"image": torch.zeros(2, 8, 5) + 0j}, "image has shape (2, 8, 5); expected (2, 8, 7)"),
        ("rim", {"image": torch.zeros(1, 8, 7) + 0j}, "image has shape (1, 8, 7); expected (2, 8, 7)"),
        ("rvn", {"image": torch.zeros(8, 7) + 0j}, "image has shape (8, 7); expected (2, 8, 7)"),
        ("rim", {"initial_kspace": torch.zeros(2, 8, 7) + 0j}, "initial_kspace has shape (2, 8, 7); expected (2, 3, 8"),
        ("rim", {"image": torch.zeros(2, 8, 7, 2)}, "image has type torch.float32; expected complex64, see torch.view"),
        (
            "rvn",
            {"padding": torch.zeros(2, 1, 8, 5) > 0},
            "padding has shape (2, 1, 8, 5); expected (2, 1, 8, 7), where",
        ),
        ("rvn", {"padding": torch.zeros(2, 1, 8, 7)}, "padding has type torch.float32; expected bool, True where the"),
        ("indrnn", {"sigma": torch.ones(2)}, "sigma has shape (2,); expected one number for the whole batch"),
        ("rim", {"likelihood_scale": torch.ones(2)}, "likelihood_scale has shape (2,); expected one number for the"),
    ],
)
def test_wrong_options_are_named(
    make: str, options: dict[str, Tensor], message: str, prepared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As outside the tests, where nothing checks the shapes in signatures.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model = TINY[make]()
    run = model.prepared() if prepared else model
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        run(*inputs(batch=2, dtype=torch.complex64), **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_one_image_may_serve_a_batch() -> None:
    model = tiny(TINY["indrnn"])
    args = inputs(batch=2)
    image = torch.randn(1, 8, 7, dtype=torch.complex128)
    assert model(*args, image=image).equal(model(*args, image=image.expand(2, 8, 7)))


def test_a_model_checks_before_it_computes() -> None:
    model = CIRIM(**SMALL_CIRIM)
    y, maps, mask = inputs(dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"^kspace has shape \(1, 3, 7\); expected \(batch, coil, height, width\)$"):
        model(y[:, :, 0], maps[:, :, 0], mask[:, :, 0])


def test_wrong_layers_are_named() -> None:
    with pytest.raises(ValueError, match=r"one entry a layer each; got 2 filters, 3 kernels, 3 dilations, 3 bias$"):
        RIMBlock(conv_filters=(64, 2))
    with pytest.raises(ValueError, match=r"end with 2 and 0; got \(64, 64, 3\) and \(64, 64, 0\)$"):
        RIMBlock(conv_filters=(64, 64, 3))
    with pytest.raises(ValueError, match=r"^depth must be 2, .*; got 3$"):
        CIRIM(depth=3)
    with pytest.raises(ValueError, match=r"needs dim and fft_dim of 2; got 3 and 3$"):
        CIRIM(sensitivity_net="normunet", dim=3)
    with pytest.raises(ValueError, match=r"^fft_dim must be between 1 and dim = 1; got 2$"):
        CIRIM(dim=1, fft_dim=2)
    with pytest.raises(ValueError, match=r"as many channels as dilations"):
        RecurrentVarNet(initializer_dilations=(1, 2))


@pytest.mark.parametrize("option", ["cell", "semantics", "fft", "maps", "scaling", "data_consistency", "combine"])
def test_wrong_choices_are_named(option: str) -> None:
    wrong: Any = {option: "lstm"}
    with pytest.raises((ValueError, TypeError), match="lstm"):
        CIRIM(**wrong)
    with pytest.MonkeyPatch.context() as hook:  # as for a user, whom no hook helps
        hook.setattr(jaxtyping.config, "jaxtyping_disable", True)
        with pytest.raises(ValueError, match=rf"^{option} must be one of .*; got 'lstm'$"):
            CIRIM(**wrong)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (CIRIM, "cascades"),
        (CIRIM, "steps"),
        (RIMBlock, "steps"),
        (RecurrentVarNet, "steps"),
        (RecurrentVarNet, "hidden"),
        (RecurrentVarNet, "layers"),
        (DirectRIM, "hidden"),
        (DirectRIM, "depth"),
        (DirectRIM, "length"),
        (VarNet, "cascades"),
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts_start_at_one(kind: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number from 1 on; got {value}$"):
        kind(**{name: value})


def test_empty_lists_are_named() -> None:
    lists = ("filters", "kernels", "dilations", "bias")
    empty: dict[str, Any] = {f"{part}_{name}": () for part in ("conv", "recurrent") for name in lists}
    with pytest.raises(ValueError, match=r"one entry a layer each; got 0 filters, 0 kernels, 0 dilations, 0 bias$"):
        CIRIM(**empty)
    with pytest.raises(ValueError, match=r"as many channels as dilations and multiscale .*; got 0, 0 and 3$"):
        RecurrentVarNet(initializer_channels=(), initializer_dilations=())
    with pytest.raises(ValueError, match=r"^a U-Net needs at least 1 filter and 1 pooling; got 8 and 0$"):
        RecurrentVarNet(refine_pools=0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"conv_kernels": (4, 3, 3)}, "4 and 1"),
        ({"conv_kernels": (5, 0, 3)}, "0 and 2"),
        ({"conv_kernels": (5, 3, 2)}, "2 and 1"),
        ({"conv_dilations": (1, 0, 1)}, "3 and 0"),
        ({"recurrent_kernels": (2, 1, 0)}, "2 and 1"),
        ({"recurrent_kernels": (1, 0, 0)}, "0 and 1"),
    ],
)
@pytest.mark.parametrize("cell", ["gru", "mgu", "indrnn"])
def test_kernels_keep_the_size_of_an_image(options: dict[str, Any], told: str, cell: Any) -> None:
    with pytest.raises(ValueError, match=rf"^kernel must be odd and dilation at least 1, .*; got {told}$"):
        CIRIM(**options, cell=cell)
    with pytest.raises(ValueError, match=r"^kernel must be odd"):
        Conv2dGRU(2, 3, gru_kernel_size=2)
