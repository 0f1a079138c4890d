"""What is known about a k-space file, from what evidence, and what will be done with it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recurra.core.errors import blaming
from recurra.core.inspection import Fact
from recurra.mri.data import Volume
from recurra.mri.data.reading import open_parts
from recurra.mri.data.volume import BadSlice
from recurra.mri.sampling import measured, sampling_of


def facts_of(path: Path, *, coils: int | None, axes: str | None, part: str | None, whiten: bool) -> Iterator[Fact]:
    """The facts about a file; of one that holds several volumes, those of each that differ from the first.

    Raises:
        FileError: it cannot be read, or what it holds does not decide.
    """
    first: dict[str, Fact] = {}
    volumes = open_parts(path, part=part, coils=coils, axes=axes, whiten=whiten)
    while True:
        with blaming(path):
            volume = next(volumes, None)
            if volume is None:
                return
            facts = list(_facts(volume))
        for fact in facts:
            if not first or first.get(fact.what) != fact:
                prefix = f"{volume.part}: " if first and volume.part else ""
                yield Fact(prefix + fact.what, fact.value, fact.evidence)
        first = first or {fact.what: fact for fact in facts}


def _facts(volume: Volume) -> Iterator[Fact]:
    slices, coils, height, width = volume.shape
    found = volume.found
    yield Fact("format", volume.format, "content of the file")
    yield Fact("slices, coils", f"{slices}, {coils}", volume.axes)
    yield Fact("matrix", f"{height} x {width} (readout x phase encoding)", volume.axes.rpartition(": ")[2])
    if volume.parts:
        yield Fact("volumes", ", ".join(volume.parts), "reconstructed one by one, or one of them by --part")
    yield from _sampling(volume)
    origin = "the corner, turned to the middle" if found.corner else "the middle"
    yield Fact("zero frequency", origin, found.origin_evidence)
    if volume.limits is not None:
        left, right = volume.limits
        if volume.padding:
            evidence = "the format" if volume.format == "Calgary-Campinas" else "the header's encoding limits"
            yield Fact("padding", f"all but columns {left} to {right - 1}", f"{evidence}, and they are empty")
        else:
            yield Fact("padding", "none", "the header's encoding limits name columns that hold samples")
    yield from _geometry(volume)
    yield from _noise(volume)
    yield from _reference(volume)
    if volume.facts:
        yield Fact("sequence", ", ".join(f"{name} {value:.4g}" for name, value in volume.facts.items()), "the header")
    for name in ("acquisition", "averages"):
        if name in volume.attributes:
            yield Fact(name, str(volume.attributes[name]), "the file")
    for remark in volume.remarks:
        yield Fact("note", remark, "")


def _sampling(volume: Volume) -> Iterator[Fact]:
    """Mask, acceleration and calibration lines; a slice that is sampled otherwise than the middle one is named."""
    found, (height, width) = volume.found, volume.shape[2:]
    sampling = found.sampling
    if sampling.mask is None:
        yield Fact("sampling", "fully sampled", sampling.evidence)
    else:
        taken = int(sampling.mask.sum())
        if len(sampling.mask) == 1:
            what = f"{taken} of {width} columns"
        elif bool((sampling.mask == sampling.mask[:, sampling.mask.any(0)][:, :1]).all()):
            what = f"{int(sampling.mask.any(1).sum())} of {height} rows"
        else:
            what = f"{taken} of {height * width} samples"
        evidence = sampling.evidence if found.mask is None else f"{sampling.evidence}, by {found.mask_evidence}"
        yield Fact("sampling", f"undersampled: {what}", evidence)
        yield Fact("acceleration", f"{sampling.acceleration:.2f}", "samples between the outermost over those taken")
        yield from _calibration(volume)
    others, bad = [], []
    for index in range(len(volume)):
        try:
            kspace = volume.kspace(index)
        except BadSlice as error:
            bad.append(error.reason)
            continue
        own = None if found.mask is None else found.mask[index if len(found.mask) > 1 else 0]
        there = measured(np.fft.fftshift(kspace, (-2, -1)) if found.corner else kspace)
        own = own if own is None or not found.corner else np.fft.fftshift(own)
        if not there.any():
            bad.append(f"slice {index} is empty")
            continue
        mask = sampling_of(there, own, volume.mask_name).mask
        if not _equal(mask, sampling.mask):
            others.append(str(index))
    if others:
        yield Fact("slices sampled otherwise", ", ".join(others), f"compared with slice {len(volume) // 2}")
    if bad:
        yield Fact("slices that do not serve", "; ".join(bad), "all slices were read")
    for axis, size, lines in (("rows", height, sampling.rows), ("columns", width, sampling.columns)):
        if lines is not None:
            share = f"{len(lines) / size:.0%} of the {axis}, {lines.start} to {lines.stop - 1}"
            evidence = "the outermost samples; zero-filled, unless --partial-fourier says otherwise"
            yield Fact("partial Fourier", share, evidence)


def _equal(one: NDArray[np.bool_] | None, other: NDArray[np.bool_] | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)


def _calibration(volume: Volume) -> Iterator[Fact]:
    import torch

    from recurra.mri.sensitivity import acs_rectangle

    if volume.calibration(len(volume) // 2) is not None:
        yield Fact("calibration", "lines of a scan of their own", "the header: separate or external calibration")
        return
    mask = volume.mask
    assert mask is not None
    rows, columns = acs_rectangle(torch.from_numpy(mask), volume.shape[2])
    if len(mask) == 1:
        stated = volume.acs_lines
        kept = columns if stated is None else min(columns, stated)
        evidence = "fully sampled middle of the mask" + (f"; the file states {stated}" if stated is not None else "")
        yield Fact("calibration", f"{kept} columns", evidence)
    else:
        yield Fact("calibration", f"{rows} x {columns} samples", "fully sampled middle of the mask")


def _geometry(volume: Volume) -> Iterator[Fact]:
    geometry = volume.geometry
    if volume.recon_size is not None:
        rows, columns = volume.recon_size
        yield Fact("image", f"{rows} x {columns}, cropped about the middle", "the header's image matrix")
    else:
        yield Fact("image", f"{volume.shape[2]} x {volume.shape[3]}", "no header: the whole matrix")
    if min(geometry.voxel[:2]) > 0:
        size = " x ".join(f"{float(np.linalg.norm(axis)):.4g}" for axis in geometry.full[:3, :3].T)
        yield Fact("voxel", f"{size} mm (row x column x slice)", geometry.evidence)
    else:
        yield Fact("voxel", "unknown, written as 1 mm", geometry.evidence)
    if geometry.uneven:
        yield Fact("slices in space", geometry.uneven, "positions; NIfTI and DICOM are refused")
    elif geometry.positions is not None and len(volume) > 1:
        ends = [", ".join(f"{value:.1f}" for value in geometry.positions[end]) for end in (0, -1)]
        yield Fact("slices in space", f"from ({ends[0]}) to ({ends[1]}) mm, right-anterior-superior", geometry.evidence)


def _noise(volume: Volume) -> Iterator[Fact]:
    noise = volume.noise
    if noise is None:
        yield Fact("noise scan", "none", "no noise readouts in the file")
        return
    done = "used to whiten the coils" if volume.whiten else "not used"
    about = f"{noise.samples} samples; largest correlation of two coils {noise.correlation:.2f}"
    if noise.dead:
        about += f"; coils {', '.join(map(str, noise.dead))} are dead"
    yield Fact("noise scan", done, about)


def _reference(volume: Volume) -> Iterator[Fact]:
    target = volume.target(len(volume) // 2)
    if target is None:
        what = "none; full k-space is its own" if volume.mask is None else "none: only --holdout can score it"
        yield Fact("reference image", what, "datasets of the file")
        return
    yield Fact("reference image", f"{target.shape[0]} x {target.shape[1]}", "datasets of the file")
    if volume.mask is None and target.any():
        raw = volume.slice(len(volume) // 2)
        axes = (-2, -1)
        image = np.fft.ifft2(np.fft.ifftshift(raw.kspace, axes) if raw.centered else raw.kspace, norm="ortho")
        image = np.sqrt((np.abs(image) ** 2).sum(0))
        image = np.fft.fftshift(image) if raw.centered else image
        rows, columns = (min(a, b) for a, b in zip(image.shape, target.shape, strict=True))
        a, b = (
            x[(x.shape[0] - rows) // 2 :][:rows, (x.shape[1] - columns) // 2 :][:, :columns] for x in (target, image)
        )
        ratio = float((a * b).sum() / ((b**2).sum() or 1.0))
        yield Fact("scale of the reference", f"{ratio:.4g} times the image of the k-space", "least squares")
