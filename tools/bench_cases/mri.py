"""Cells, networks, training and files of recurra.mri."""

import tempfile
from functools import partial
from pathlib import Path

import torch

from bench_cases.case import Case, Run, Variants, inference, reference


def scan(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A four-fold undersampled phantom of 12 coils, scaled as the models are trained."""
    from recurra.mri.data.phantom import phantom_slice

    kspace, maps, _ = phantom_slice(height, width, 12, (0, 0))
    mask = torch.zeros(1, 1, 1, width, dtype=torch.bool)
    mask[..., ::4] = True
    mask[..., width // 2 - width // 24 : width // 2 + width // 24] = True
    kspace, maps = (torch.as_tensor(a)[None].to(torch.complex64) for a in (kspace, maps))
    scale = torch.fft.ifft2(kspace, norm="ortho").abs().max()
    return torch.where(mask, kspace, 0) / scale, maps, mask


def scan_of(name: str, small: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return scan(32, 32) if small else scan(218, 170) if "varnet" in name or "direct" in name else scan(256, 256)


def network(name: str) -> torch.nn.Module:
    from recurra.mri.models import MODELS

    torch.manual_seed(0)
    if name == "recurrentvarnet":
        return MODELS["RecurrentVarNet"](steps=8, hidden=128, layers=4, refine="none").eval()
    if name == "direct rim":
        return MODELS["DirectRIM"]().eval()
    cell = name.split()[-1]
    return MODELS["CIRIM"](cell=cell, cascades=5 if name.startswith("cirim") else 1).eval()


def model(name: str, small: bool, device: str) -> Variants:
    data, plain = scan_of(name, small), network(name)
    variants = {
        "plain": lambda: inference(reference(lambda: plain(*data))),
        "fused gates": lambda: inference(lambda: plain(*data)),
        "prepared": lambda: partial(plain.prepared(), *data),
    }
    if "rim " not in name or "direct" in name:  # no cells, the gates are plain torch
        del variants["fused gates"]
    return variants


def cell_alone(kind: str, small: bool, device: str) -> Variants:
    from recurra.core.nn import ConvGRUCell, ConvIndRNNCell, ConvMGUCell
    from recurra.core.nn.prepared import Cell

    torch.manual_seed(0)
    plain = {"gru": ConvGRUCell, "mgu": ConvMGUCell, "indrnn": ConvIndRNNCell}[kind](64, 64)
    size = 16 if small else 256
    x, h = torch.randn(1, 64, size, size), torch.randn(1, 64, size, size)
    last_x, state = (t.movedim(1, -1).contiguous() for t in (x, h))
    start = state.clone()

    def prepared() -> Run:
        cell = Cell(plain)

        def run() -> torch.Tensor:
            # From the same state each time; a model would go on from the last.
            state.copy_(start)
            return cell(last_x, state).movedim(-1, 1)

        return inference(run)

    return {
        "plain": lambda: inference(reference(lambda: plain(x, h))),
        "fused gates": lambda: inference(lambda: plain(x, h)),
        "prepared": prepared,
    }


def training(name: str, small: bool, device: str) -> Variants:
    data, trained = scan(32, 32) if small else scan(128, 128), network(name).train()

    def step(checkpointing: bool) -> torch.Tensor:
        trained.checkpointing = checkpointing
        trained.zero_grad(set_to_none=True)
        loss = sum(weight * image.abs().mean() for weight, image in trained.estimates(*data))
        loss.backward()
        return torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None])

    return {
        "plain": lambda: reference(partial(step, False)),
        "fused gates": lambda: partial(step, False),
        "checkpointing": lambda: partial(step, True),
    }


def slices(few: int, many: int, small: bool, device: str) -> Variants:
    """Reconstruction of a file of few and of many slices: memory must not grow with them."""
    import h5py
    import numpy as np

    from recurra.mri import reconstruct
    from recurra.mri.models import CIRIM

    folder = Path(tempfile.mkdtemp(prefix="recurra-bench"))
    kspace = scan(64, 64)[0][0].numpy()
    net = CIRIM(cascades=1, conv_filters=(8, 8, 2), recurrent_filters=(8, 8, 0), maps="rss").eval()

    def run(count: int) -> None:
        (result,) = reconstruct(
            net, [folder / f"{count}.h5"], folder / "out", overwrite=True, quiet=True, preview=False
        )
        if result.error:
            raise SystemExit(result.error)

    few, many = (1, 2) if small else (few, many)
    for count in (few, many):
        with h5py.File(folder / f"{count}.h5", "w") as file:
            stored = file.create_dataset("kspace", (count, *kspace.shape), np.complex64, chunks=(1, *kspace.shape))
            for index in range(count):
                stored[index] = kspace
    return {f"{few} slices": lambda: partial(run, few), f"{many} slices": lambda: partial(run, many)}


CASES = {
    **{f"cell {kind} 64": Case("mri", partial(cell_alone, kind), repeats=9) for kind in ("gru", "mgu", "indrnn")},
    **{name: Case("mri", partial(model, name)) for name in ("rim indrnn", "rim mgu", "rim gru")},
    **{
        name: Case("mri", partial(model, name), repeats=3) for name in ("cirim indrnn", "recurrentvarnet", "direct rim")
    },
    **{f"train {name}": Case("mri", partial(training, name), 1e-3, 1) for name in ("cirim indrnn", "rim gru")},
    "reconstruct a file": Case("mri", partial(slices, 4, 200), None, 1),
}
