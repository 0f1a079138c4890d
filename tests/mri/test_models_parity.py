"""Models against golden pairs made by their authors' code, weights renamed by `recurra.mri.conversion`."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recurra.core.nn import Conv2dGRU, ConvGRUCell, ConvIndRNNCell, ConvMGUCell, NormConv2dGRU
from recurra.core.testing import Golden, assert_close, check_grads, check_outputs, golden, renamed
from recurra.core.testing import pairs as core_pairs
from recurra.mri import operators
from recurra.mri.conversion import (
    from_atommic,
    from_direct_recurrentvarnet,
    from_direct_rim,
    from_mridc,
    rim_block_options,
)
from recurra.mri.losses import L1, L2, SSIM, ImageLoss, accumulated
from recurra.mri.models import CIRIM, DirectRIM, NormUnet, RecurrentVarNet, RIMBlock, Unet
from recurra.mri.models.recurrentvarnet import RecurrentInit, RecurrentVarNetBlock
from recurra.mri.models.rim_block import ConvNonlinear
from recurra.mri.models.unet import SensitivityRefinement

pytestmark = pytest.mark.parity


pairs = partial(core_pairs, "mri")


def complex_inputs(pair: Golden) -> dict[str, Tensor]:
    """Inputs with a trailing axis of (real, imaginary) as complex tensors; masks without that axis, boolean."""
    inputs = {}
    for name, value in pair.inputs.items():
        if name == "mask":
            inputs[name] = value[..., 0].bool()
        elif name in ("y", "S", "x0", "pred0", "eta", "target", "current", "k0") and value.shape[-1] == 2:
            inputs[name] = torch.view_as_complex(value.contiguous())
        else:
            inputs[name] = value
    return inputs


def axes_last(value: Tensor, *, sliced: bool) -> Tensor:
    """A volume (batch, slice, coil, height, width) of the authors as ours, (batch, coil, slice, height, width)."""
    return value.transpose(1, 2) if sliced else value


# --- cells and layers ------------------------------------------------------------------------------------------------


@pairs("cell_*", reference="rnn_cells.py")
def test_cell(path: Path) -> None:
    pair = golden(path)
    kinds: dict[str, Any] = {"ConvGRUCell": ConvGRUCell, "ConvMGUCell": ConvMGUCell, "IndRNNCell": ConvIndRNNCell}
    config = pair.config
    cell = kinds[pair.reference.rsplit("::", 1)[-1].strip()](
        config["input_size"],
        config["hidden_size"],
        kernel=config["kernel_size"],
        dilation=config["dilation"],
        bias=config.get("bias", True),
        dim=pair.state["ih.weight"].ndim - 2,
    )
    cell.load_state_dict(pair.state)
    x, h = pair.inputs["x"], pair.inputs["h"]
    if pair.state["ih.weight"].ndim == 5 and x.ndim == 4:
        # The authors' volumes have no batch axis, and slices before channels in the state.
        x, h = x[None], h.transpose(0, 1)[None]
    x.requires_grad_()
    h.requires_grad_()
    h1 = cell(x, h)
    if pair.grads or "grad_x" in pair.outputs:
        h1.square().mean().backward()
    outputs = {"h1": h1, "h2": cell(x, h1)}
    check_outputs(pair, outputs | {f"grad_{n}": v.grad for n, v in {"x": x, "h": h}.items() if v.grad is not None})
    check_grads(pair, cell)


@pairs("convnonlinear_*", reference="conv_layers.py::ConvNonlinear")
def test_conv_nonlinear(path: Path) -> None:
    pair = golden(path)
    config = pair.config
    layer = ConvNonlinear(
        config["input_size"],
        config["features"],
        kernel=config["kernel_size"],
        dilation=config["dilation"],
        bias=config["bias"],
        nonlinear=config["nonlinear"].lower() if config["nonlinear"] else None,
        dim=config["conv_dim"],
    )
    layer.load_state_dict(pair.state)
    y = layer(pair.inputs["x"])
    check_outputs(pair, {"y": y})
    y.square().mean().backward()
    check_grads(pair, layer)


@pairs("conv2dgru_*|normconv2dgru_*", reference="recurrent/recurrent.py")
def test_conv2d_gru(path: Path) -> None:
    pair = golden(path)
    config = dict(pair.config)
    assert config.pop("replication_padding", True)
    model: Any = NormConv2dGRU(**config) if "NormConv2dGRU" in pair.reference else Conv2dGRU(**config)
    model.load_state_dict(pair.state)
    y0, s0 = model(pair.inputs["x"], None)
    y1, s1 = model(pair.inputs["x"], pair.inputs["h"])
    check_outputs(pair, {"y0": y0, "s0": s0, "y1": y1, "s1": s1})
    (y1.square().mean() + s1.square().mean()).backward()
    check_grads(pair, model)


# --- operators -------------------------------------------------------------------------------------------------------


def operator(name: str, x: Tensor, maps: Tensor, expected: Tensor) -> Tensor:
    """What the output of this name is, computed by us."""
    convention: Any
    if name.startswith(("fft", "ifft")):
        transform = operators.fft if name.startswith("fft") else operators.ifft
        if "1" in name:
            return transform(x, "centered-ortho", 1)
        words = name.split("_")
        convention = "centered-ortho" if len(words) == 1 else "-".join(words[1:])
        return transform(x, convention)
    if name == "crop":
        return operators.center_crop(x, (expected.shape[-3], expected.shape[-2]))
    functions: dict[str, Any] = {
        "rss_abs": operators.rss,
        "rss_complex": operators.rss,
        "rss": operators.rss,
        "atommic_rss_complex_bug": operators.atommic_rss_complex,
        "modulus": operators.complex_abs,
    }
    if name in functions:
        result: Tensor = functions[name](x)
        return result
    if name == "expand":
        return operators.sense_expand(x[:, 0], maps)  # the first coil stands for the image
    return {"sense_reduce": operators.sense_reduce}[name](x, maps)


@pairs("ops*")
def test_operators(path: Path) -> None:
    pair = golden(path)
    compared = 0
    for key, expected in pair.outputs.items():
        name, _, index = key.rpartition("_")
        x = torch.view_as_complex(pair.inputs[f"x{index}"])
        maps = torch.view_as_complex(pair.inputs[f"S{index}"])
        assert_close(operator(name, x, maps, expected), expected, pair.tolerance, name=key)
        compared += 1
    assert compared


@pairs("loglik_*", reference="MRILogLikelihood")
def test_data_gradient(path: Path) -> None:
    pair = golden(path)
    config, inputs = pair.config, complex_inputs(pair)
    direct = "MRILogLikelihood" in pair.reference
    if direct:
        shift = "centered" if config["centered"] else "uncentered"
        convention: Any = f"{shift}-{'ortho' if config['normalized'] else 'backward'}"
        image = operators.from_channels(inputs["eta"])
    else:
        shift = "centered" if config["fft_centered"] else "uncentered"
        convention = f"{shift}-{config['fft_normalization']}"
        image = inputs["eta"]
    dim = len(config.get("spatial_dims", (-2, -1)))
    gradient = operators.data_gradient(image, inputs["y"], inputs["S"], inputs["mask"], convention, dim)
    if direct:
        out = operators.to_channels(gradient * inputs.get("scaling", torch.ones(1)))
    else:
        gradient = gradient / max(config["sigma"], 1.0)
        out = torch.cat([operators.to_channels(image), operators.to_channels(gradient)], dim=1)
    check_outputs(pair, {"out": out})


# --- recurrent inference machines ------------------------------------------------------------------------------------


@pairs("rimblock_*", reference="rim_block.py::RIMBlock")
def test_rim_block(path: Path) -> None:
    pair = golden(path)
    inputs = complex_inputs(pair)
    block = RIMBlock(**rim_block_options(pair.config))
    block.load_state_dict(pair.state)
    sliced = inputs["y"].ndim == 5
    y, maps, mask = (axes_last(inputs[name], sliced=sliced) for name in ("y", "S", "mask"))

    def seen(x: Tensor) -> Tensor:
        return axes_last(x, sliced=sliced and pair.config.get("no_dc", True) is False)

    estimates, hidden = block(y, y, maps, mask)
    outputs = {f"pred_{t}": seen(x) for t, x in enumerate(estimates)}
    outputs |= {f"hx{j}": h[0].transpose(0, 1) if sliced else h for j, h in enumerate(hidden)}
    if "given_last" in pair.outputs:
        start = [inputs[f"h{j}"] for j in range(len(hidden))]
        start = [h.transpose(0, 1)[None] for h in start] if sliced else start
        sigma = float(re.search(r"sigma=([0-9.]*[0-9])", pair.notes)[1])  # type: ignore[index]
        given, last = block(y, y, maps, mask, image=inputs["pred0"], hidden=start, sigma=sigma)
        outputs["given_last"] = seen(given[-1])
        outputs |= {f"given_hx{j}": h[0].transpose(0, 1) if sliced else h for j, h in enumerate(last)}
    check_outputs(pair, outputs)
    torch.stack([torch.view_as_real(x).square().mean() for x in estimates]).sum().backward()
    check_grads(pair, block)


def loss_named(name: str) -> ImageLoss:
    losses: dict[str, ImageLoss] = {
        "l1": L1(normalize="max"),
        "mse": L2(normalize="max"),
        "ssim": SSIM(data_range="span", normalize="max"),
    }
    return losses[name]


@pairs("cirim_*", reference="cirim.py::CIRIM")
def test_cirim(path: Path) -> None:
    pair = golden(path)
    convert = from_mridc if "mridc" in pair.reference else from_atommic
    config, state = convert(pair.config, pair.state)
    model = CIRIM(**config)
    model.load_state_dict(state)
    inputs = complex_inputs(pair)
    sliced = inputs["y"].ndim == 5
    y, maps, mask = (axes_last(inputs[name], sliced=sliced) for name in ("y", "S", "mask"))
    images, _ = model.trajectory(y, maps, mask, image=inputs.get("x0"))
    outputs = {f"pred_{c}_{t}": x for c, cascade in enumerate(images) for t, x in enumerate(cascade)}
    if pair.outputs["pred_0_0"].ndim == pair.inputs["y"].ndim:
        # ATOMMIC's explicit data consistency ends in the coils' k-space.
        block = model.cascades[0]
        outputs = {f"pred_0_{t}": k for t, k in enumerate(block(y, y, maps, mask, image=inputs.get("x0"))[0])}
    if "noinit_last" in pair.outputs:
        outputs["noinit_last"] = model(y, maps, mask)

    # The weights are those that `estimates` gives, the images those that start from x0.
    model.accumulate = bool(pair.config.get("accumulate_predictions", True))
    weights = [w for w, _ in model.estimates(y, maps, mask)]
    flat = [x for cascade in images for x in cascade]
    weighted = list(zip(weights, flat if model.accumulate else flat[-1:], strict=True))
    for name in [key for key in pair.outputs if key.startswith("loss_")]:
        outputs[name] = accumulated(loss_named(name.removeprefix("loss_")), weighted, inputs["target"])
    check_outputs(pair, outputs)
    if pair.grads:
        outputs["loss_l1"].backward()
        check_grads(pair, model, renamed(pair.state, lambda order: convert(pair.config, order)[1]))


@pairs("trained_irim_*", elsewhere=True)
def test_trained_irim(path: Path) -> None:
    """A published network on a real slice: needs the slice beside the pair's folder."""
    import h5py

    pair = golden(path)
    folder = path.resolve().parents[2] / "data" / "mri"
    files = [folder / "brain_8ch_poisson8x.h5", folder / "brain_8ch_reference_recons.h5"]
    if not all(file.is_file() for file in files):
        pytest.skip(f"no {files[0].name} in {folder}")
    with h5py.File(files[0]) as scan, h5py.File(files[1]) as references:
        kspace = torch.from_numpy(scan["kspace"][()]).squeeze()[None]
        upright = torch.from_numpy(references["espirit_maps"][()]).squeeze()[None].to(torch.complex64)
        wavelet = torch.from_numpy(references["l1_wavelet"][()]).squeeze().abs()
    maps = torch.fft.ifftshift(upright, dim=(-2, -1))
    config, state = from_mridc(pair.config, pair.state)
    model = CIRIM(**config)
    model.load_state_dict(state)
    scale = model.to_image(kspace).abs().max()
    assert_close(scale, pair.outputs["scale"], pair.tolerance, name="scale")
    kspace = (kspace / scale).to(torch.complex64)
    mask = kspace.abs().sum(1, keepdim=True) > 0
    with torch.no_grad():
        images, _ = model.trajectory(kspace, maps, mask)
    for name, expected in pair.outputs.items():
        if name.startswith("pred_"):
            assert_close(images[0][int(name.removeprefix("pred_"))], expected, pair.tolerance, name=name)

    def psnr(image: torch.Tensor) -> float:
        error = image.abs() / image.abs().max() - wavelet / wavelet.max()
        return float(-10 * torch.log10(error.square().mean()))

    if "psnr_vs_l1wavelet" in pair.outputs:
        steps = [psnr(torch.fft.fftshift(image[0])) for image in images[0]]
        assert_close(torch.tensor(steps), pair.outputs["psnr_vs_l1wavelet"][1:], atol=0.01, name="PSNR of the steps")
        # The image in the middle of its array: no border cuts through it.
        recentered = CIRIM(**{**config, "fft": "recentered-ortho"})
        recentered.load_state_dict(state)
        with torch.no_grad():
            images, _ = recentered.trajectory(kspace, upright, mask)
        assert max(psnr(image[0]) for image in images[0]) > 31.85 > max(steps)


# --- direct ----------------------------------------------------------------------------------------------------------


@pairs("recurrentinit_*", reference="recurrentvarnet.py::RecurrentInit")
def test_recurrent_init(path: Path) -> None:
    pair = golden(path)
    config = pair.config
    model = RecurrentInit(
        config["in_channels"],
        config["out_channels"],
        config.get("depth", 2),
        channels=tuple(config["channels"]),
        dilations=tuple(config["dilations"]),
        multiscale=config.get("multiscale_depth", 1),
    )
    model.load_state_dict(pair.state)
    y = model(pair.inputs["x"])
    check_outputs(pair, {"y": y})
    y.square().mean().backward()
    check_grads(pair, model)


@pairs("rvn_block*", reference="RecurrentVarNetBlock")
def test_recurrentvarnet_block(path: Path) -> None:
    pair = golden(path)
    config, inputs = pair.config, complex_inputs(pair)
    convention: Any = config["fft"].replace(" ", "-")
    block = RecurrentVarNetBlock(
        config["hidden_channels"], config["num_layers"], normalized=config["normalized"], fft=convention
    )
    block.load_state_dict(pair.state)
    kspace, h = block(inputs["current"], inputs["y"], inputs["S"], inputs["mask"], inputs.get("h"))
    check_outputs(pair, {"kspace": kspace, "h": h})


@pairs("rvn_[!b]*", reference="recurrentvarnet.py::RecurrentVarNet")
def test_recurrentvarnet(path: Path) -> None:
    pair = golden(path)
    if "RecurrentVarNetBlock" in pair.reference:
        pytest.skip("a block, see test_recurrentvarnet_block")
    config, state = from_direct_recurrentvarnet(pair.config, pair.state)
    model = RecurrentVarNet(**config)
    model.load_state_dict(state)
    inputs = complex_inputs(pair)
    args = inputs["y"], inputs["S"], inputs["mask"]
    image = model(*args, image=inputs.get("x0"))
    kspace = model.trajectory(*args, image=inputs.get("x0"))[0][-1]
    check_outputs(pair, {"kspace": kspace, "image": image})
    image.square().mean().backward()
    check_grads(pair, model, renamed(pair.state, lambda order: from_direct_recurrentvarnet(pair.config, order)[1]))


@pairs("rim_direct_*", reference="rim.py::RIM")
def test_direct_rim(path: Path) -> None:
    pair = golden(path)
    if "MRILogLikelihood" in pair.reference or "RIMBlock" in pair.reference:
        pytest.skip("another class")
    config, state = from_direct_rim(pair.config, pair.state)
    model = DirectRIM(**config)
    model.load_state_dict(state)
    inputs = complex_inputs(pair)
    args = inputs["y"], inputs["S"], inputs["mask"]
    start: dict[str, Any] = {}
    if model.start == "input_image":
        start["image"] = inputs["x0"]
    elif model.start == "input_kspace":
        start["initial_kspace"] = inputs.get("k0", inputs["y"])
    if "scaling" in inputs:
        start["likelihood_scale"] = inputs["scaling"]
    images, hidden = model.trajectory(*args, state=inputs.get("h"), **start)
    outputs = {f"train_{t}": operators.to_channels(x) for t, x in enumerate(images)}
    outputs |= {"last": outputs[f"train_{len(images) - 1}"], "state": hidden}
    if "h" not in inputs:
        outputs["last"] = operators.to_channels(model(*args, **start))
    check_outputs(pair, outputs)
    if pair.grads:
        images[-1].abs().square().mean().backward()
        check_grads(pair, model, renamed(pair.state, lambda order: from_direct_rim(pair.config, order)[1]))


# --- U-Nets ----------------------------------------------------------------------------------------------------------


@pairs("ser_unet*", reference="compute_sensitivity_map")
def test_sensitivity_refinement(path: Path) -> None:
    pair = golden(path)
    config = pair.config
    assert (config["in_channels"], config["out_channels"]) == (2, 2)
    model = SensitivityRefinement(config["num_filters"], config["num_pool_layers"])
    model.unet.load_state_dict(pair.state)
    maps = complex_inputs(pair)["S"]
    check_outputs(pair, {"raw": model.raw(maps), "S": model(maps)})


@pairs("normunet_*", reference="unet_block.py::NormUnet")
def test_norm_unet(path: Path) -> None:
    pair = golden(path)
    config = pair.config
    model = NormUnet(
        config["chans"],
        config["num_pools"],
        channels=config.get("in_chans", 2) // 2,
        padding=config.get("padding_size", 15),
        normalize=config.get("normalize", True),
    )
    model.load_state_dict(pair.state)
    y = model(torch.view_as_complex(pair.inputs["x"]))
    check_outputs(pair, {"y": y})


@pairs("unet_*", elsewhere=True)
def test_unet(path: Path) -> None:
    pair = golden(path)
    config = pair.config
    model = Unet(
        config.get("in_channels", config.get("in_chans", 2)),
        config.get("out_channels", config.get("out_chans", 2)),
        config.get("num_filters", config.get("chans", 32)),
        config.get("num_pool_layers", 4),
    )
    model.load_state_dict(pair.state)
    check_outputs(pair, {"y": model(pair.inputs["x"])})
