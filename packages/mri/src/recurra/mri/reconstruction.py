"""What `reconstruct` does with files: every format of each volume, the others though one fails, nothing replaced."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from recurra.core.errors import FileError, UserError, blaming
from recurra.core.files import check_folder, find_inputs, guard_inputs, open_output, result_names
from recurra.core.inference import Origin, Result, Results, Runs, each_file, file_digest, kept, share
from recurra.core.processes import Work
from recurra.core.screen import progress
from recurra.core.verbs import Inputs
from recurra.mri.data import Volume, open_volume
from recurra.mri.data.sources import SUFFIXES
from recurra.mri.figures import preview_png
from recurra.mri.inference import Reconstruction
from recurra.mri.outputs import OutputFormat, origin_of, volume_writer


class VolumeResult(Result):
    """What became of one file; its units are slices."""

    @property
    def slices(self) -> int:
        """How many were reconstructed."""
        return self.count


@dataclass(frozen=True)
class _ToFiles:
    """Writes what a reconstruction makes of a file, in every format, and the middle slice as a picture."""

    how: Reconstruction
    out: Path
    formats: tuple[OutputFormat, ...]
    preview: bool
    names: Mapping[Path, str]
    overwrite: bool = False
    others: frozenset[Path] = frozenset()

    def __call__(self) -> Work[Result]:
        """The work, in the process that does it."""
        options = self.how.check().digest()
        return lambda path: self.result(path, str(Origin(file_digest(path), options)))

    def outputs(self, path: Path, part: str | None = None) -> list[Path]:
        """Where the results of an input go; the HDF5 file has the input's name, as the leader board wants it."""
        stem = self.names[path] + (f"_{part}" if part else "")
        names = {"fastmri": f"{stem}.h5", "nifti": f"{stem}.nii", "dicom": f"{stem}_dicom"}
        return [self.out / names[kind] for kind in self.formats]

    def pictures(self, path: Path, part: str | None = None) -> list[Path]:
        """Where the preview of an input goes, if one is wanted."""
        stem = self.names[path] + (f"_{part}" if part else "")
        return [self.out / f"{stem}.png"] if self.preview else []

    def result(self, path: Path, origin: str) -> Result:
        result = VolumeResult(path)
        damage: list[str] = []
        for volume in self.how.volumes(path):
            bad: dict[int, str] = {}
            name = path.name if volume.part is None else f"{path.name} {volume.part}"
            with progress(len(volume), name, quiet=self.how.quiet) as advance:
                result.outputs += self.write(volume, self.how.images(volume, advance, bad=bad), origin, bad)
            result.count += len(volume)
            result.notes += [note for note in self.how.remarks(volume) if note not in result.notes]
            damage += bad.values()
        if damage:
            done = f"{'; '.join(damage)}: left out, {result.count - len(damage)} of {result.count} slices were written"
            if self.how.skip_bad_slices:
                result.notes.append(done)
            else:
                result.error = f"{path}: {done}; --skip-bad-slices takes that for a success"
        return result

    def write(
        self, volume: Volume, images: Iterator[tuple[int, NDArray[Any]]], origin: str, bad: dict[int, str]
    ) -> list[Path]:
        numbered = next(images, None)
        if numbered is None:
            raise FileError(volume.path, f"{'; '.join(bad.values())}; no slice is left")
        first = numbered[1]
        shape = (len(volume), *first.shape)
        written = self.outputs(volume.path, volume.part)
        guard_inputs(written, [volume.path])
        for output in written if volume.part else ():
            if output in self.others and self.how.part is None:
                raise FileError(
                    volume.path, f"its {volume.part} would be {output}, the result of another input; give them apart"
                )
            if not self.overwrite:
                open_output(output)
        placed = {"nifti", "dicom"} & set(self.formats)
        affine = volume.image_affine(shape[1:]) if placed else np.eye(4)
        middle, distance = first, len(volume)
        with ExitStack() as stack:
            writers = [
                stack.enter_context(
                    volume_writer(
                        path, shape, format=kind, affine=affine, part=self.how.image, facts=volume.facts, origin=origin
                    )
                )
                for path, kind in zip(written, self.formats, strict=True)
            ]
            for index, image in chain([numbered], images):
                for writer in writers:
                    while writer.written < index:
                        writer.skip()
                    writer.write(image)
                if abs(index - len(volume) // 2) < distance:
                    middle, distance = image, abs(index - len(volume) // 2)
            for writer in writers:
                while writer.written < len(volume):
                    writer.skip()
        for picture in self.pictures(volume.path, volume.part):
            title = volume.path.name if volume.part is None else f"{volume.path.name}, {volume.part}"
            written.append(preview_png(picture, middle, title=f"{title}, slice {len(volume) // 2}"))
        return written

    def kept(self, path: Path) -> Result | None:
        """What an earlier run with the same options made of the same input, if all of it is whole."""
        parts: tuple[str | None, ...] = (self.how.part,)
        if self.how.part is None:
            with blaming(path), open_volume(path, coils=self.how.coils, axes=self.how.axes) as volume:
                parts = volume.parts or (None,)
        outputs = [output for part in parts for output in self.outputs(path, part)]
        there = [output for output in outputs if output.exists()]
        if not there:
            return None
        origin = Origin(file_digest(path), self.how.digest())
        found = {output: origin_of(output) for output in there}
        pictures = [picture for part in parts for picture in self.pictures(path, part)]
        made = {output: text for output, (text, _) in found.items()}
        if not kept(made, len(outputs), origin, pictures):
            return None
        return VolumeResult(path, outputs + pictures, sum(found[output][1] for output in outputs[:: len(self.formats)]))


def reconstruct_files(
    how: Reconstruction, inputs: Inputs, out: Path, *, formats: Sequence[str], preview: bool, runs: Runs
) -> Results:
    """What the verb `reconstruct` does, with its options."""
    known = get_args(OutputFormat)
    unknown = sorted(set(formats) - set(known))
    if unknown or not formats:
        raise UserError(f"format must be one or more of {', '.join(known)}; got {', '.join(unknown) or 'none'}")
    if how.image == "complex" and "dicom" in formats:
        raise UserError(
            "DICOM holds no complex images; write --image magnitude and --image phase, each to its own --out"
        )
    _ = how.target
    found = find_inputs(inputs, SUFFIXES, leave_out=[out])
    chosen: Any = tuple(dict.fromkeys(formats))
    check_folder(out)
    work = _ToFiles(how, out, chosen, preview, result_names(found), runs.overwrite or runs.resume)
    work = replace(work, others=frozenset(output for path in found for output in work.outputs(path)))
    outputs = [output for _, path in share(found, runs.shard) for output in work.outputs(path, how.part)]
    guard_inputs(outputs, [*found, *how.own_files])
    previews = [picture for _, path in share(found, runs.shard) for picture in work.pictures(path, how.part)]
    for output in outputs:
        if output.is_dir() and not output.name.endswith("_dicom"):
            raise UserError(f"{output}: is a folder, and a file is to be written there; choose another --out")
    for output in () if runs.resume else (*outputs, *previews):
        open_output(output, runs.overwrite)
    how.check()
    prepare = work if runs.workers == 1 else replace(work, how=replace(how))  # without what it has loaded
    return each_file(found, prepare, out, runs, kept=work.kept, kind=VolumeResult)
