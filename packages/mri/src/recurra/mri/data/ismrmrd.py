"""ISMRMRD raw files, read with h5py and the standard library alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from recurra.core.hdf5 import dataset, member, names, read
from recurra.mri.data.assembly import LINE, AssembledVolume
from recurra.mri.data.header import parse_header
from recurra.mri.noise import Noise, measure_noise

# Flags are numbered from 1; flag n is bit n - 1.
_NOISE, _CALIBRATION, _CALIBRATION_AND_IMAGE, _REVERSED = 19, 20, 21, 22
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
        part: name of the echo, repetition and so on to take; the first by default.
        whiten: make the noise of the coils white where the file has a noise scan.

    Raises:
        ValueError: the header or the acquisitions are missing or not of a 2-D Cartesian scan.
    """

    def __init__(
        self,
        path: Path,
        file: h5py.File,
        *,
        coils: int | None = None,
        remove_oversampling: bool = False,
        part: str | None = None,
        whiten: bool = True,
    ) -> None:
        self._file = file
        group = raw_group(file) or "dataset"
        self._data = dataset(path, file, f"{group}/data")
        xml = read(path, dataset(path, file, f"{group}/xml"), (), "the header")
        if not xml.size:
            raise ValueError(f"{path}: has no header in {group}/xml; expected the XML of ISMRMRD")
        header = parse_header(np.ravel(xml)[0], path)
        if header.trajectory != "cartesian":
            raise ValueError(f"{path}: has a {header.trajectory} trajectory; expected cartesian")
        heads = _heads(path, self._data)
        lines = _lines(heads)
        encodings = heads["encoding_space_ref"] if "encoding_space_ref" in (heads.dtype.names or ()) else None
        remarks: tuple[str, ...] = ()
        if encodings is not None and len(lines):
            # The header read here is that of the first encoding; lines of another are of another matrix.
            other = encodings[lines["source"]] != 0
            if other.any() and not other.all():
                lines = lines[~other]
                remarks = (f"{int(other.sum())} readouts of other encoding spaces than the first are left out",)
        readout = header.needed_readout if remove_oversampling else header.encoded[0]
        steps = header.encoded[1]
        directions = np.stack([heads[name] for name in ("read_dir", "phase_dir", "slice_dir")], axis=-1)
        super().__init__(
            path,
            lines,
            matrix=(header.encoded[0], steps),
            center_step=steps // 2 if header.center is None else header.center,
            readout=readout,
            separate_calibration=header.calibration_mode in ("separate", "external", "other"),
            voxel=header.voxel,
            directions=(directions * _TO_RAS[:, None]).astype(np.float64)[lines["source"]],
            coils=coils,
            part=part,
            format="ISMRMRD",
            recon_size=(header.needed_readout, min(header.recon[1], steps)),
            attributes={"field_of_view_mm": header.recon_fov, "acquisitions": len(heads)},
            facts_of=header.facts,
            remarks=remarks,
            measure=lambda: self._noise(path, heads, lines),
            whiten=whiten,
        )

    def _noise(self, path: Path, heads: NDArray[Any], lines: NDArray[Any]) -> Noise | None:
        """The noise of the coils, if the file has a scan of it."""
        scans = np.flatnonzero(_flag(heads, _NOISE))
        if not len(scans) or not len(lines):
            return None
        values = read(path, self._data.fields("data"), scans, "the noise scan")
        coils = [int(heads["active_channels"][scan]) for scan in scans]
        timed = "sample_time_us" in (heads.dtype.names or ())
        times = heads["sample_time_us"].astype(np.float64) if timed else np.zeros(len(heads))
        return measure_noise(
            [_by_coil(np.asarray(one, np.float32), count, path) for one, count in zip(values, coils, strict=True)],
            dwell=times[scans].tolist(),
            image_dwell=float(times[lines["source"][0]]) or None,
        )

    def close(self) -> None:
        """Gives the file back."""
        self._file.close()

    def _samples(self, sources: NDArray[np.int64]) -> Sequence[NDArray[np.complex64]]:
        if not len(sources):
            return []
        # h5py selects increasing indices only; `sources` is sorted.
        found = read(self.path, self._data.fields("data"), sources, "an acquisition")
        return [_by_coil(np.asarray(one, np.float32), self.shape[1], self.path) for one in found]


def _by_coil(values: NDArray[np.float32], coils: int, path: Path) -> NDArray[np.complex64]:
    """The interleaved samples of an acquisition as (coil, sample)."""
    if not coils or len(values) % (2 * coils):
        raise ValueError(
            f"{path}: an acquisition has {len(values) // 2} samples for {coils} coils; the file is damaged"
        )
    return values.view(np.complex64).reshape(coils, -1)


def raw_group(file: h5py.File) -> str | None:
    """Name of the group that holds `data` and `xml`, usually "dataset"."""
    for name in sorted(names(file), key=lambda one: one != "dataset"):
        group = member(file, name)
        if isinstance(group, h5py.Group) and {"data", "xml"} <= set(names(group)):
            return name
    return None


def _flag(heads: NDArray[Any], number: int) -> NDArray[np.bool_]:
    """The acquisitions that have a flag."""
    raised: NDArray[np.bool_] = (heads["flags"] >> np.uint64(number - 1)) & np.uint64(1) != 0
    return raised


def _heads(path: Path, data: h5py.Dataset) -> NDArray[Any]:
    names = data.dtype.names or ()
    if "head" not in names or "data" not in names:
        raise ValueError(f"{path}: dataset 'data' is not a table of acquisitions (head, traj, data)")
    heads = read(path, data.fields("head"), slice(None), "the acquisition headers")
    missing = sorted(_HEAD - set(heads.dtype.names or ()))
    if missing:
        raise ValueError(f"{path}: the acquisition headers lack {', '.join(missing)}; expected those of ISMRMRD")
    return heads


_HEAD = {"flags", "idx", "number_of_samples", "active_channels", "center_sample", "discard_pre", "discard_post"}
_HEAD |= {"position", "read_dir", "phase_dir", "slice_dir"}
_TO_RAS = np.array([-1.0, -1.0, 1.0])


def _lines(heads: NDArray[Any]) -> NDArray[Any]:
    """The image and calibration lines among the acquisitions."""
    lines = np.zeros(len(heads), LINE)
    index = heads["idx"]
    lines["source"] = np.arange(len(heads))
    lines["step"], lines["partition"] = index["kspace_encode_step_1"], index["kspace_encode_step_2"]
    for name in ("slice", "contrast", "phase", "set", "repetition"):
        lines[name] = index[name]
    lines["samples"], lines["coils"] = heads["number_of_samples"], heads["active_channels"]
    lines["center"] = np.where(heads["center_sample"] > 0, heads["center_sample"], heads["number_of_samples"] // 2)
    lines["pre"], lines["post"] = heads["discard_pre"], heads["discard_post"]
    lines["reversed"] = _flag(heads, _REVERSED)
    lines["calibration"] = _flag(heads, _CALIBRATION) & ~_flag(heads, _CALIBRATION_AND_IMAGE)
    lines["position"] = heads["position"] * _TO_RAS
    wanted: NDArray[Any] = lines[~np.any([_flag(heads, number) for number in _NO_IMAGE], axis=0)]
    return wanted
