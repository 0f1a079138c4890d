"""Siemens raw data ("twix", .dat), by the package twixtools of the extra `raw`."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import IOBase, StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.mri.data.assembly import LINE, AssembledVolume
from recurra.mri.noise import Noise, measure_noise

_TO_RAS = np.array([-1.0, -1.0, 1.0])
_SEPARATE_REFERENCE = 4  # sPat.ucRefScanMode: calibration lines of a scan of their own


class TwixVolume(AssembledVolume):
    """The slices of the last scan in a .dat file; the scans before it are the scanner's own adjustments.

    Args:
        path: the file.
        coils: number of coils that the file must have.
        remove_oversampling: cut the readout oversampling away here; else it stays, as in fastMRI files, and
            `recon_size` says what to crop the image to.
        part: name of the echo, repetition and so on to take; the first by default.
        whiten: make the noise of the coils white where the file has a noise scan.

    Raises:
        ValueError: twixtools is not installed, or the file is damaged or not of a 2-D Cartesian scan.
    """

    def __init__(
        self,
        path: Path,
        *,
        coils: int | None = None,
        remove_oversampling: bool = False,
        part: str | None = None,
        whiten: bool = True,
    ) -> None:
        scan, others = _read_scans(path)
        self._blocks = scan["mdb"]
        protocol = scan["hdr"].get("MeasYaps", {})
        lines = _lines(self._blocks)
        if not len(lines):
            raise ValueError(f"{path}: has no image lines; expected Cartesian readouts")
        first = self._blocks[int(lines["source"][0])].mdh
        columns = int(lines["samples"].max())
        steps = max(int(protocol.get("sKSpace", {}).get("lPhaseEncodingLines", 0)), int(lines["step"].max()) + 1)
        factor = float(scan["hdr"].get("Dicom", {}).get("flReadoutOSFactor", 1.0) or 1.0)
        readout = round(columns / factor) if remove_oversampling else columns
        fields, voxel, directions = _geometry(scan.get("geometry"), steps, columns, factor, lines["position"])
        super().__init__(
            path,
            lines,
            matrix=(columns, steps),
            center_step=int(first.CenterLin) or steps // 2,
            readout=readout,
            separate_calibration=protocol.get("sPat", {}).get("ucRefScanMode") == _SEPARATE_REFERENCE,
            voxel=voxel,
            directions=directions,
            coils=coils,
            part=part,
            format="Siemens twix",
            recon_size=(round(columns / factor), steps),
            attributes={"field_of_view_mm": fields, "acquisitions": len(self._blocks)},
            facts_of=lambda echo: _facts(protocol, scan["hdr"].get("Dicom", {}), echo),
            measure=lambda: _noise([*others, self._blocks], int(lines["coils"][0])),
            whiten=whiten,
        )

    def close(self) -> None:
        """Gives the file back."""
        if self._blocks:
            self._blocks[0].fid.close()

    def _samples(self, sources: NDArray[np.int64]) -> Sequence[NDArray[np.complex64]]:
        try:
            return [np.asarray(self._blocks[int(source)].data) for source in sources]
        except (ValueError, OSError):
            raise ValueError(f"{self.path}: a readout cannot be read; the file is cut short or damaged") from None


def _read_scans(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The last scan of the file, as twixtools has it, and the readouts of those before it."""
    try:
        import twixtools
    except ImportError:
        raise ValueError(
            f"{path}: Siemens raw data needs the package twixtools; install it with: pip install 'recurra-mri[raw]'"
        ) from None
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: is empty (0 bytes); expected Siemens raw data")
    try:
        with redirect_stdout(StringIO()):  # it prints what it thinks of a file
            scans = twixtools.read_twix(
                str(path), parse_pmu=False, verbose=False, keep_syncdata=False, keep_acqend=True
            )
        scan = dict(scans[-1])
        ended = bool(scan["mdb"]) and scan["mdb"][-1].is_flag_set("ACQEND")
    except Exception as error:  # a parser of a foreign binary format fails in any way at all
        _close_what_is_open(error)
        raise ValueError(f"{path}: is not Siemens raw data, or is cut short or damaged") from None
    if not ended:
        if scan["mdb"]:
            scan["mdb"][0].fid.close()
        raise ValueError(f"{path}: is cut short; the scan has no end mark")
    return scan, [one["mdb"] for one in scans[:-1]]


def _facts(protocol: Any, dicom: Any, echo: int) -> dict[str, object]:
    """What the protocol says of the sequence; times are in microseconds there."""
    found: dict[str, object] = {}
    for name, key in (("RepetitionTime", "alTR"), ("EchoTime", "alTE")):
        values = [value for value in np.ravel(protocol.get(key, [])) if isinstance(value, (int, float, np.number))]
        if values:
            found[name] = float(values[min(echo, len(values) - 1)]) / 1000
    angles = np.ravel(protocol.get("adFlipAngleDegree", []))
    found |= {"FlipAngle": angles[0]} if len(angles) else {}
    found |= {"MagneticFieldStrength": dicom["flMagneticFieldStrength"]} if "flMagneticFieldStrength" in dicom else {}
    return {name: value for name, value in found.items() if isinstance(value, (int, float, np.number)) and value > 0}


def _noise(scans: Sequence[Any], coils: int) -> Noise | None:
    """The noise of the coils: from the last scan of the file that has noise readouts of as many."""
    for blocks in reversed(scans):
        found = [one for one in blocks if one.is_flag_set("NOISEADJSCAN") and one.mdh.UsedChannels == coils]
        if found:
            return measure_noise([np.asarray(one.data, np.complex64) for one in found])
    return None


def _close_what_is_open(error: BaseException) -> None:
    """Closes the files that the functions left open which the error ended."""
    trace = error.__traceback__
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            if isinstance(value, IOBase):
                value.close()
        trace = trace.tb_next


def _lines(blocks: Sequence[Any]) -> NDArray[Any]:
    """The image and calibration lines among the readouts."""
    lines = np.zeros(len(blocks), LINE)
    keep = np.zeros(len(blocks), bool)
    for number, block in enumerate(blocks):
        header, flagged = block.mdh, block.is_flag_set
        calibration = flagged("PATREFSCAN") and not flagged("PATREFANDIMASCAN")
        noise = (
            flagged("ACQEND")
            or flagged("NOISEADJSCAN")
            or flagged("PHASCOR")
            or flagged("RTFEEDBACK")
            or flagged("HPFEEDBACK")
        )
        keep[number] = (block.is_image_scan() or calibration) and not noise
        lines[number] = (
            number,
            block.cLin,
            block.cPar,
            block.cSlc,
            block.cEco,
            block.cPhs,
            block.cSet,
            block.cRep,
            header.SamplesInScan,
            header.UsedChannels,
            header.CenterCol or header.SamplesInScan // 2,
            header.CutOff.Pre,
            header.CutOff.Post,
            flagged("REFLECT"),
            calibration,
            [-(at := header.SliceData.SlicePos).Sag, -at.Cor, at.Tra],
        )
    return lines[keep]


def _geometry(
    found: Any, steps: int, columns: int, factor: float, positions: NDArray[np.float64]
) -> tuple[tuple[float, ...], tuple[float, float, float], NDArray[np.float64] | None]:
    """Field of view of the image and size of a voxel in mm, and for each line the directions of its slice."""
    if not found:
        return (), (0.0, 0.0, 0.0), None
    rows, phase, thickness = (float(size) for size in found[0].fov)  # readout (oversampled), phase, slice
    # Columns of the matrix are phase, readout and slice in the scanner's left-posterior-superior frame.
    turns = np.stack([np.asarray(one._prs_to_pcs_mat, np.float64)[:, [1, 0, 2]] for one in found]) * _TO_RAS[:, None]
    places = np.stack([np.asarray(one.offset, np.float64) for one in found]) * _TO_RAS
    nearest = np.linalg.norm(positions[:, None] - places, axis=-1).argmin(1)
    return (rows / factor, phase, thickness), (rows / columns, phase / steps, thickness), turns[nearest]
