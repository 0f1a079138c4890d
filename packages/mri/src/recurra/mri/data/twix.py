"""Siemens raw data ("twix", .dat), by the package twixtools of the extra `raw`."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import IOBase, StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.mri.data.assembly import LINE, AssembledVolume
from recurra.mri.data.header import affine

_SEPARATE_REFERENCE = 4  # sPat.ucRefScanMode: calibration lines of a scan of their own


class TwixVolume(AssembledVolume):
    """The slices of the last scan in a .dat file; the scans before it are the scanner's own adjustments.

    Args:
        path: the file.
        coils: number of coils that the file must have.
        remove_oversampling: cut the readout oversampling away here; else it stays, as in fastMRI files, and
            `recon_size` says what to crop the image to.

    Raises:
        ValueError: twixtools is not installed, or the file is damaged or not of a 2-D Cartesian scan.
    """

    def __init__(self, path: Path, *, coils: int | None = None, remove_oversampling: bool = False) -> None:
        scan = _read_scan(path)
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
        fields, geometry = _geometry(scan.get("geometry"), (readout, steps), columns, factor)
        super().__init__(
            path,
            lines,
            matrix=(columns, steps),
            center_step=int(first.CenterLin) or steps // 2,
            readout=readout,
            separate_calibration=protocol.get("sPat", {}).get("ucRefScanMode") == _SEPARATE_REFERENCE,
            coils=coils,
            format="Siemens twix",
            recon_size=(round(columns / factor), steps),
            affine=geometry,
            attributes={"field_of_view_mm": fields, "acquisitions": len(self._blocks)},
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


def _read_scan(path: Path) -> dict[str, Any]:
    """The last scan of the file, as twixtools has it."""
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
    return scan


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
            header.SamplesInScan,
            header.UsedChannels,
            header.CenterCol or header.SamplesInScan // 2,
            header.CutOff.Pre,
            header.CutOff.Post,
            flagged("REFLECT"),
            calibration,
        )
    return lines[keep]


def _geometry(
    found: Any, matrix: tuple[int, int], columns: int, factor: float
) -> tuple[tuple[float, ...], NDArray[np.float64]]:
    """Field of view of the image in mm, and the affine."""
    if not found:
        return (), affine(matrix, (0.0, 0.0, 0.0))
    first = found[0]
    rows, phase, thickness = (float(size) for size in first.fov)  # readout (oversampled), phase, slice
    voxel = (rows / columns, phase / matrix[1], thickness)
    # Columns of the matrix are phase, readout and slice in the scanner's left-posterior-superior frame.
    turn = np.asarray(first._prs_to_pcs_mat, np.float64)[:, [1, 0, 2]] * np.array([[-1.0], [-1.0], [1.0]])
    positions = [np.asarray(one.offset, np.float64) * np.array([-1.0, -1.0, 1.0]) for one in found]
    gap = float(np.linalg.norm(positions[1] - positions[0])) if len(positions) > 1 else thickness
    center = positions[0]
    result = affine(matrix, (voxel[0], voxel[1], gap), directions=turn, center=center)
    return (rows / factor, phase, thickness), result
