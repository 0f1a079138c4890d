"""ISMRMRD raw files, read with h5py and the standard library alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from recurra.core.hdf5 import read
from recurra.mri.data.assembly import LINE, AssembledVolume
from recurra.mri.data.header import Header, affine, parse_header

# Flags are numbered from 1; flag n is bit n - 1.
_CALIBRATION, _CALIBRATION_AND_IMAGE, _REVERSED = 20, 21, 22
# Noise, navigator, phase correction, feedback, dummy, surface coil correction and phase stabilisation scans.
_NO_IMAGE = (19, 23, 24, 26, 27, 28, 29, 30, 31)


class ISMRMRDVolume(AssembledVolume):
    """The slices of an ISMRMRD file.

    Args:
        path: the file.
        file: the same, opened.
        coils: number of coils that the file must have.
        remove_oversampling: cut the readout oversampling away here; else it stays, as in fastMRI files, and
            `recon_size` says what to crop the image to.

    Raises:
        ValueError: the header or the acquisitions are missing or not of a 2-D Cartesian scan.
    """

    def __init__(
        self, path: Path, file: h5py.File, *, coils: int | None = None, remove_oversampling: bool = False
    ) -> None:
        self._file = file
        group = file[raw_group(file) or "dataset"]
        self._data = group["data"]
        header = parse_header(np.ravel(group["xml"][()])[0], path)
        if header.trajectory != "cartesian":
            raise ValueError(f"{path}: has a {header.trajectory} trajectory; expected cartesian")
        heads = _heads(path, self._data)
        lines = _lines(heads)
        readout = header.needed_readout if remove_oversampling else header.encoded[0]
        steps = header.encoded[1]
        super().__init__(
            path,
            lines,
            matrix=(header.encoded[0], steps),
            center_step=steps // 2 if header.center is None else header.center,
            readout=readout,
            separate_calibration=header.calibration_mode in ("separate", "external", "other"),
            coils=coils,
            format="ISMRMRD",
            recon_size=(header.needed_readout, min(header.recon[1], steps)),
            affine=_affine(header, heads[lines["source"]], (readout, steps)),
            attributes={"field_of_view_mm": header.recon_fov, "acquisitions": len(heads)},
        )

    def close(self) -> None:
        """Gives the file back."""
        self._file.close()

    def _samples(self, sources: NDArray[np.int64]) -> Sequence[NDArray[np.complex64]]:
        if not len(sources):
            return []
        # h5py selects increasing indices only; `sources` is sorted.
        found = read(self.path, self._data.fields("data"), sources, "an acquisition")
        return [self._by_coil(np.asarray(one, np.float32)) for one in found]

    def _by_coil(self, values: NDArray[np.float32]) -> NDArray[np.complex64]:
        """The interleaved samples of an acquisition as (coil, sample)."""
        coils = self.shape[1]
        if len(values) % (2 * coils):
            raise ValueError(
                f"{self.path}: an acquisition has {len(values) // 2} samples for {coils} coils; the file is damaged"
            )
        return values.view(np.complex64).reshape(coils, -1)


def raw_group(file: h5py.File) -> str | None:
    """Name of the group that holds `data` and `xml`, usually "dataset"."""
    for name in sorted(file, key=lambda one: one != "dataset"):
        group = file[name]
        if isinstance(group, h5py.Group) and "data" in group and "xml" in group:
            return str(name)
    return None


def _heads(path: Path, data: h5py.Dataset) -> NDArray[Any]:
    names = data.dtype.names or ()
    if "head" not in names or "data" not in names:
        raise ValueError(f"{path}: dataset 'data' is not a table of acquisitions (head, traj, data)")
    return read(path, data.fields("head"), slice(None), "the acquisition headers")


def _lines(heads: NDArray[Any]) -> NDArray[Any]:
    """The image and calibration lines among the acquisitions."""

    def flag(number: int) -> NDArray[np.bool_]:
        raised: NDArray[np.bool_] = (heads["flags"] >> np.uint64(number - 1)) & np.uint64(1) != 0
        return raised

    lines = np.zeros(len(heads), LINE)
    index = heads["idx"]
    lines["source"] = np.arange(len(heads))
    lines["step"], lines["partition"] = index["kspace_encode_step_1"], index["kspace_encode_step_2"]
    for name in ("slice", "contrast", "phase", "set"):
        lines[name] = index[name]
    lines["samples"], lines["coils"] = heads["number_of_samples"], heads["active_channels"]
    lines["center"] = np.where(heads["center_sample"] > 0, heads["center_sample"], heads["number_of_samples"] // 2)
    lines["pre"], lines["post"] = heads["discard_pre"], heads["discard_post"]
    lines["reversed"] = flag(_REVERSED)
    lines["calibration"] = flag(_CALIBRATION) & ~flag(_CALIBRATION_AND_IMAGE)
    wanted: NDArray[Any] = lines[~np.any([flag(number) for number in _NO_IMAGE], axis=0)]
    return wanted


def _affine(header: Header, heads: NDArray[Any], matrix: tuple[int, int]) -> NDArray[np.float64]:
    voxel = header.voxel
    if not len(heads):
        return affine(matrix, voxel)
    first = heads[np.argmin(heads["idx"]["slice"])]
    last = heads[np.argmax(heads["idx"]["slice"])]
    directions = np.stack([first[name] for name in ("read_dir", "phase_dir", "slice_dir")], axis=1).astype(np.float64)
    if not np.allclose(np.linalg.norm(directions, axis=0), 1, atol=1e-3):
        return affine(matrix, voxel)
    to_ras = np.array([-1.0, -1.0, 1.0])
    count = int(last["idx"]["slice"]) - int(first["idx"]["slice"])
    gap = float(np.linalg.norm(last["position"].astype(np.float64) - first["position"])) / max(count, 1)
    return affine(
        matrix,
        (voxel[0], voxel[1], gap if gap > 0 else voxel[2]),
        directions=directions * to_ras[:, None],
        center=first["position"].astype(np.float64) * to_ras,
    )
