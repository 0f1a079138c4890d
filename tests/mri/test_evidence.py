"""What is known about a scan is what its samples say: sampling, axes, zero frequency, places, references."""

import re
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recurra.mri import Undersampling, evaluate, inspect, reconstruct
from recurra.mri.data import open_volume
from recurra.mri.data.geometry import slice_order, unevenness
from recurra.mri.data.header import write_header
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.sampling import mask_of, measured, sampling_of
from tests.mri.test_formats import Line, image, lines_of, random_kspace, write_raw

Array = NDArray[Any]
HEIGHT, WIDTH, COILS = 48, 40, 3


@pytest.fixture(scope="module")
def kspace() -> Array:
    """Two slices (slice, coil, height, width), zero frequency in the middle."""
    return np.stack([phantom_slice(HEIGHT, WIDTH, COILS, (7, n), noise=0.003)[0] for n in range(2)])


@pytest.fixture(scope="module")
def square() -> Array:
    return np.stack([phantom_slice(40, 40, COILS, (8, n), noise=0.003)[0] for n in range(2)])


def write(path: Path, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


def every(step: int, size: int, first: int = 1) -> NDArray[np.bool_]:
    """A pattern of every `step`-th line and the middle ones."""
    mask = np.zeros(size, bool)
    mask[first::step] = True
    mask[size // 2 - 5 : size // 2 + 5] = True
    return mask


# --- sampling


class TestSampling:
    def seen(self, taken: Array) -> Array | None:
        return mask_of(np.asarray(taken, bool))

    def test_lines_left_out_are_undersampling(self) -> None:
        columns = every(4, WIDTH)
        found = self.seen(np.broadcast_to(columns, (HEIGHT, WIDTH)))
        np.testing.assert_array_equal(found, columns[None])
        rows = every(3, HEIGHT)
        plane = np.broadcast_to(rows[:, None], (HEIGHT, WIDTH))
        np.testing.assert_array_equal(self.seen(plane), plane)
        both = rows[:, None] & columns
        np.testing.assert_array_equal(self.seen(both), both)

    def test_one_missing_line_is_undersampling(self) -> None:
        taken = np.ones((HEIGHT, WIDTH), bool)
        taken[:, 31] = False
        found = self.seen(taken)
        assert found is not None
        assert np.flatnonzero(~found[0]).tolist() == [31]

    def test_scattered_samples_are_undersampling(self) -> None:
        taken = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3
        np.testing.assert_array_equal(self.seen(taken), taken)

    @pytest.mark.parametrize("kind", ["padding", "partial", "ellipse", "corner", "stray", "nothing"])
    def test_borders_and_strays_are_none(self, kind: str) -> None:
        taken = np.ones((HEIGHT, WIDTH), bool)
        y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
        if kind == "padding":
            taken[:, :4] = taken[:, -3:] = taken[-2:] = False
        elif kind == "partial":
            taken[:, 30:] = False
        elif kind == "ellipse":
            taken = x**2 + y**2 < 1
        elif kind == "corner":
            taken[:6, :6] = False
        elif kind == "stray":
            taken[20, 7] = False  # a sample may be zero
        else:
            taken[:] = False
        assert self.seen(taken) is None

    def test_noise_is_measured_and_rounding_is_not(self, kspace: Array) -> None:
        one = kspace[0].copy()
        one[..., ::2] *= 1e-9
        assert measured(one).any(0).tolist() == [False, True] * (WIDTH // 2)
        assert measured(kspace[0]).all()

    @pytest.mark.parametrize("size", [(48, 40), (96, 80)])
    def test_what_a_transform_and_back_leaves_is_not_measured(self, size: tuple[int, int]) -> None:
        mask = every(4, size[1])
        full = phantom_slice(*size, COILS, 4, noise=0.003)[0]
        cut = np.where(mask, full, 0).astype(np.complex64)
        again = torch.fft.fft2(torch.fft.ifft2(torch.from_numpy(cut))).numpy()
        assert again[..., ~mask].any()
        np.testing.assert_array_equal(measured(again), np.broadcast_to(mask, size))
        assert measured(phantom_slice(*size, COILS, 4, noise=0.0)[0]).all()

    def test_mask_and_samples_that_contradict_each_other(self) -> None:
        taken = np.broadcast_to(every(4, WIDTH), (HEIGHT, WIDTH))
        whole = sampling_of(taken, np.ones((1, WIDTH), bool), "the mask")
        np.testing.assert_array_equal(whole.mask, taken[:1])
        assert whole.remark.startswith("the mask keeps every sample, but the file was measured undersampled: 18 of 40")
        more = every(4, WIDTH)[None].copy()
        more[0, 3] = True  # said to be measured, and empty
        found = sampling_of(taken, more, "the mask")
        np.testing.assert_array_equal(found.mask, taken[:1])
        assert found.remark == "the mask keeps 1 columns that are zero in all coils; they count as not measured"
        found = sampling_of(np.ones((HEIGHT, WIDTH), bool), more, "the mask")
        np.testing.assert_array_equal(found.mask, more)
        assert found.remark == "the mask leaves out samples that the k-space holds; they are not used"
        assert found.acceleration == pytest.approx(37 / 19)

    @pytest.mark.parametrize("stored", [None, "ones"])
    def test_undersampled_without_a_mask(self, stored: str | None, kspace: Array, tmp_path: Path) -> None:
        mask = every(4, WIDTH)
        data: dict[str, Any] = {"kspace": np.where(mask, kspace, 0)}
        if stored:
            data["mask"] = np.ones(WIDTH)
        file = write(tmp_path / "a.h5", **data)
        with open_volume(file) as volume:
            np.testing.assert_array_equal(volume.mask, mask[None])
            np.testing.assert_array_equal(volume.slice(1).mask, mask[None])
            assert bool(volume.remarks) == (stored is not None)
        given = Undersampling("random", 4.0, 0.2)
        table = evaluate("rim-small", file, baselines=("zero_filled",), maps="rss", quiet=True)
        assert table.rows == []
        assert "and without a reference image, nothing to compare with" in table.failures[0]
        table = evaluate("rim-small", file, baselines=("zero_filled",), undersampling=given, quiet=True)
        assert "--mask undersamples fully sampled files, leave it out" in table.failures[0]

    def test_maps_come_from_measured_samples_alone(self, kspace: Array, tmp_path: Path) -> None:
        """The same image whether the mask stands in the file or is told from the samples."""
        mask = every(4, WIDTH)
        for name, data in (("said", {"mask": mask}), ("found", {})):
            write(tmp_path / f"{name}.h5", kspace=np.where(mask, kspace, 0), **data)
        results = reconstruct("rim-small", tmp_path, tmp_path / "out", quiet=True, preview=False)
        assert [result.error for result in results] == [None, None]
        one, other = (h5py.File(result.outputs[0])["reconstruction"][()] for result in results)
        np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("middle", ["full", "empty", "NaN"])
    def test_every_slice_answers_for_itself(self, middle: str, kspace: Array, tmp_path: Path) -> None:
        data = np.where(every(4, WIDTH), np.concatenate([kspace, kspace[:1]]), 0)
        data[1] = {"full": kspace[1], "empty": 0, "NaN": np.nan}[middle]
        file = write(tmp_path / "a.h5", kspace=data)
        table = evaluate("rim-small", file, baselines=("zero_filled",), skip_bad_slices=True, maps="rss", quiet=True)
        assert table.rows == []
        assert "undersampled (slice 0: 18 of 40 columns hold samples" in table.failures[0]
        (result,) = reconstruct("rim-small", file, tmp_path / "out", maps="rss", quiet=True, skip_bad_slices=True)
        assert any("are sampled otherwise" in note for note in result.notes) == (middle == "full")

    def test_a_mask_of_the_centre_is_applied_to_full_kspace(self, kspace: Array, tmp_path: Path) -> None:
        """It leaves out borders alone, but these hold samples: somebody wants them left out."""
        mask = np.zeros(WIDTH, bool)
        mask[10:30] = True
        for data, expected in ((kspace, mask[None]), (np.where(mask, kspace, 0), None)):
            with open_volume(write(tmp_path / "a.h5", kspace=data, mask=mask)) as volume:
                found = volume.slice(0)
                np.testing.assert_array_equal(found.mask, expected)
                assert bool(volume.remarks) == (expected is not None)

    @pytest.mark.parametrize("change", [np.transpose, np.flipud, np.fft.fftshift, np.logical_not])
    def test_a_mask_of_another_pattern_is_refused(self, change: Any, square: Array, tmp_path: Path) -> None:
        mask = np.random.default_rng(3).random((40, 40)) < 0.3
        mask[15:25, 15:25] = True
        write(tmp_path / "a.h5", kspace=np.where(mask, square, 0), mask=change(mask))
        with (
            open_volume(tmp_path / "a.h5") as volume,
            pytest.raises(ValueError, match=r"contradict each other|inverted"),
        ):
            volume.slice(0)


class TestMaskAxes:
    def found(self, path: Path, kspace: Array, mask: Array) -> Array:
        write(path, kspace=kspace, mask=mask)
        with open_volume(path) as volume:
            taken = [volume.slice(index).mask for index in range(len(volume))]
        return np.stack([np.broadcast_to(one, kspace.shape[2:]) for one in taken if one is not None])

    @pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH), (WIDTH, 1), (1, 1, WIDTH), (1, 1, 1, WIDTH, 1)])
    @pytest.mark.parametrize("masked", [True, False])
    def test_columns(self, shape: tuple[int, ...], masked: bool, kspace: Array, tmp_path: Path) -> None:
        mask = every(4, WIDTH)
        data = np.where(mask, kspace, 0) if masked else kspace
        found = self.found(tmp_path / "a.h5", data, mask.reshape(shape).astype(np.float32))
        np.testing.assert_array_equal(found, np.broadcast_to(mask, (2, HEIGHT, WIDTH)))

    @pytest.mark.parametrize("shape", [(HEIGHT,), (HEIGHT, 1), (1, HEIGHT)])
    def test_rows(self, shape: tuple[int, ...], kspace: Array, tmp_path: Path) -> None:
        mask = every(4, HEIGHT)
        found = self.found(tmp_path / "a.h5", np.where(mask[:, None], kspace, 0), mask.reshape(shape))
        np.testing.assert_array_equal(found, np.broadcast_to(mask[:, None], (2, HEIGHT, WIDTH)))

    @pytest.mark.parametrize("shape", [(40,), (40, 1), (1, 40)])
    @pytest.mark.parametrize("axis", ["rows", "columns"])
    def test_of_a_square_the_samples_decide(
        self, shape: tuple[int, ...], axis: str, square: Array, tmp_path: Path
    ) -> None:
        mask = every(4, 40)
        plane = np.broadcast_to(mask[:, None] if axis == "rows" else mask, (40, 40))
        found = self.found(tmp_path / "a.h5", np.where(plane, square, 0), mask.reshape(shape))
        np.testing.assert_array_equal(found, np.broadcast_to(plane, (2, 40, 40)))

    @pytest.mark.parametrize(("shape", "axis"), [((40, 1), "rows"), ((1, 40), "columns")])
    def test_of_a_square_nothing_was_left_out_of_yet_the_shape_decides(
        self, shape: tuple[int, ...], axis: str, square: Array, tmp_path: Path
    ) -> None:
        mask = every(4, 40)
        plane = np.broadcast_to(mask[:, None] if axis == "rows" else mask, (40, 40))
        found = self.found(tmp_path / "a.h5", square, mask.reshape(shape))
        np.testing.assert_array_equal(found, np.broadcast_to(plane, (2, 40, 40)))

    def test_one_axis_that_nothing_decides_is_refused(self, square: Array, tmp_path: Path) -> None:
        line = r"of shape \(40,\) fits the columns and the rows .* the samples do not decide; store it as \(40, 40\)"
        with pytest.raises(ValueError, match=line):
            self.found(tmp_path / "a.h5", square, every(4, 40))

    @pytest.mark.parametrize("plane", [False, True])
    def test_slices_with_masks_of_their_own(self, plane: bool, kspace: Array, tmp_path: Path) -> None:
        masks = np.stack([every(4, WIDTH, 1), every(4, WIDTH, 3)])
        full = np.broadcast_to(masks[:, None], (2, HEIGHT, WIDTH))
        for data in (kspace, np.where(masks[:, None, None], kspace, 0)):
            found = self.found(tmp_path / "a.h5", data, full if plane else masks)
            np.testing.assert_array_equal(found, full)


# --- order of the axes and zero frequency


def header_of(matrix: tuple[int, int], coils: int, limits: tuple[int, int] | None = None) -> bytes:
    fov = (float(matrix[0]), float(matrix[1]), 5.0)
    steps = limits or (matrix[1] // 2, matrix[1] - 1)
    return write_header((*matrix, 1), (*matrix, 1), encoded_fov=fov, recon_fov=fov, limits=steps, coils=coils).encode()


class TestAxes:
    @pytest.mark.parametrize("order", list(permutations(range(4))))
    def test_any_order_with_a_header(self, order: tuple[int, ...], kspace: Array, tmp_path: Path) -> None:
        data = kspace.transpose(order)
        write(tmp_path / "a.h5", kspace=data, ismrmrd_header=header_of((HEIGHT, WIDTH), COILS))
        with open_volume(tmp_path / "a.h5") as volume:
            assert volume.shape == kspace.shape
            for index in range(2):
                np.testing.assert_array_equal(volume.kspace(index), kspace[index])
            assert bool(volume.remarks) == (order != (0, 1, 2, 3))

    def test_by_sizes_alone(self, kspace: Array, tmp_path: Path) -> None:
        write(tmp_path / "a.h5", kspace=kspace[:1].transpose(0, 2, 3, 1))  # one slice, coils last
        with open_volume(tmp_path / "a.h5") as volume:
            assert volume.shape == (1, COILS, HEIGHT, WIDTH)
            np.testing.assert_array_equal(volume.kspace(0), kspace[0])

    def test_by_the_reference(self, kspace: Array, tmp_path: Path) -> None:
        images = np.ones((2, 40, 40), np.float32)
        write(tmp_path / "a.h5", kspace=kspace.transpose(0, 2, 3, 1), reconstruction_rss=images)
        with open_volume(tmp_path / "a.h5") as volume:
            np.testing.assert_array_equal(volume.kspace(1), kspace[1])

    def test_what_nothing_decides_is_refused_and_can_be_said(self, kspace: Array, tmp_path: Path) -> None:
        file = write(tmp_path / "a.h5", kspace=kspace.transpose(0, 2, 3, 1))  # two slices of three coils, or reverse
        line = "has axes of 2 x 48 x 40 x 3, which are not slice, coil, height, width; name their order"
        with pytest.raises(ValueError, match=re.escape(line)):
            open_volume(file)
        with open_volume(file, axes="slice,height,width,coil") as volume:
            np.testing.assert_array_equal(volume.kspace(1), kspace[1])
        with pytest.raises(ValueError, match="axes must name each of slice, coil, height, width"):
            open_volume(file, axes="slice,height,width,coils")
        with pytest.raises(ValueError, match=r"has 4 axes .*; --axes names 3"):
            open_volume(file, axes="coil,height,width")

    def test_one_coil_or_one_slice(self, kspace: Array, tmp_path: Path) -> None:
        file = write(tmp_path / "a.h5", kspace=kspace[0][:, None])
        with pytest.raises(ValueError, match="one coil and 3 slices, or 3 coils and one slice; say which"):
            open_volume(file)
        with open_volume(file, coils=1) as volume:
            assert volume.shape == (3, 1, HEIGHT, WIDTH)
        with open_volume(file, axes="coil,slice,height,width") as volume:
            np.testing.assert_array_equal(volume.kspace(0), kspace[0])

    def test_frames_are_volumes_of_their_own(self, kspace: Array, tmp_path: Path) -> None:
        frames = np.stack([kspace, 2 * kspace, 3 * kspace])
        file = write(tmp_path / "a.h5", kspace=frames)
        with pytest.raises(ValueError, match=r"has shape \(3, 2, 3, 48, 40\).*name the axes"):
            open_volume(file)
        with open_volume(file, axes="frame,slice,coil,height,width", part="frame3") as volume:
            assert volume.parts == ("frame1", "frame2", "frame3")
            np.testing.assert_array_equal(volume.kspace(1), 3 * kspace[1])
        results = reconstruct(
            "rim-small", file, tmp_path / "out", axes="frame,slice,coil,height,width", quiet=True, preview=False
        )
        assert [path.name for path in results[0].outputs] == ["a_frame1.h5", "a_frame2.h5", "a_frame3.h5"]
        images = [h5py.File(path)["reconstruction"][()] for path in results[0].outputs]
        np.testing.assert_allclose(images[2], 3 * images[0], rtol=1e-3, atol=1e-3 * images[2].max())

    def test_complex_numbers_of_matlab(self, kspace: Array, tmp_path: Path) -> None:
        table = np.zeros(kspace.shape, [("real", "<f8"), ("imag", "<f8")])
        table["real"], table["imag"] = kspace.real, kspace.imag
        write(tmp_path / "a.h5", kspace=table)
        with open_volume(tmp_path / "a.h5") as volume:
            np.testing.assert_array_equal(volume.kspace(1), kspace[1])
            assert volume.remarks == []
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            file["kspace"].attrs["MATLAB_class"] = np.bytes_("single")
        with open_volume(tmp_path / "a.h5") as volume:
            assert "was written by MATLAB, which reverses axes" in volume.remarks[0]


class TestZeroFrequency:
    @pytest.mark.parametrize("size", [(48, 40), (47, 41)])
    @pytest.mark.parametrize("rolled", [False, True])
    @pytest.mark.parametrize("masked", [False, True])
    def test_in_the_corner(self, size: tuple[int, int], rolled: bool, masked: bool, tmp_path: Path) -> None:
        """np.fft.fft2 of images, with their middle in the middle or in the corner."""
        centred = phantom_slice(*size, COILS, 5, noise=0.001)[0]
        images = image(centred)
        axes = (-2, -1)
        stored = np.fft.fft2(np.fft.ifftshift(images, axes) if rolled else images, norm="ortho")
        mask = np.ones(size[1], bool)
        if masked:
            mask = every(4, size[1])
            stored = np.where(np.fft.ifftshift(mask), stored, 0)
        data: dict[str, Any] = {"mask": np.fft.ifftshift(mask)} if masked else {}
        write(tmp_path / "a.h5", kspace=stored[None].astype(np.complex64), **data)
        with open_volume(tmp_path / "a.h5") as volume:
            raw = volume.slice(0)
            assert "the zero frequency is in the corner of the arrays" in volume.remarks[-1]
        np.testing.assert_allclose(raw.kspace, np.where(mask, centred, 0), atol=1e-5)
        if masked:
            np.testing.assert_array_equal(raw.mask, mask[None])

    def test_in_the_middle_nothing_is_said(self, kspace: Array, tmp_path: Path) -> None:
        with open_volume(write(tmp_path / "a.h5", kspace=kspace)) as volume:
            assert volume.remarks == []
            np.testing.assert_array_equal(volume.slice(0).kspace, kspace[0])

    def test_noise_does_not_tell(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.complex64)
        with open_volume(write(tmp_path / "a.h5", kspace=noise)) as volume:
            assert volume.found.origin_evidence == "fastMRI files have it there; the samples do not tell"


def test_real_numbers_are_no_interleaved_ones(kspace: Array, tmp_path: Path) -> None:
    for data in (np.abs(kspace), np.concatenate([kspace.real, kspace.imag], 1)):
        with pytest.raises(ValueError, match="has type float32; expected complex numbers"):
            open_volume(write(tmp_path / "a.h5", kspace=data))


def test_an_interpolated_image_matrix_crops_nothing(kspace: Array, tmp_path: Path) -> None:
    """As many pixels as rows both ways, in the same field of view."""
    fov = (float(HEIGHT), float(HEIGHT), 5.0)
    header = write_header(
        (HEIGHT, WIDTH, 1), (HEIGHT, HEIGHT, 1), encoded_fov=fov, recon_fov=fov, limits=(WIDTH // 2, WIDTH - 1), coils=3
    )
    with open_volume(write(tmp_path / "a.h5", kspace=kspace, ismrmrd_header=header.encode())) as volume:
        assert volume.recon_size == (HEIGHT, WIDTH)


def test_an_image_about_the_corners_is_said(square: Array, tmp_path: Path) -> None:
    rolled = np.fft.fftshift(np.fft.fft2(image(square), norm="ortho"), (-2, -1))
    with open_volume(write(tmp_path / "a.h5", kspace=rolled.astype(np.complex64))) as volume:
        assert volume.remarks[0].startswith("the image lies about the corners of its matrix")


# --- places


class TestPlaces:
    kspace = random_kspace(2, 12, 10)

    def stack(self, path: Path, positions: list[float], turned: int | None = None) -> Path:
        lines: list[Line] = []
        for number, z in enumerate(positions):
            directions = np.eye(3) if number != turned else np.eye(3)[[1, 2, 0]]
            head: dict[str, Any] = dict(zip(("read_dir", "phase_dir", "slice_dir"), directions, strict=True))
            head["position"] = (3.0, -4.0, z)
            lines += lines_of((number + 1) * self.kspace, counters={"slice": number}, head=head)
        return write_raw(path, lines, (12, 10))

    @pytest.mark.parametrize(
        "positions",
        [[10, 20, 30], [30, 20, 10], [0, 10, 5], [0, 20, 10, 30], [-5, 15, 5, -15], [7], [12.5, -2.5]],
    )
    def test_every_slice_is_where_it_was_measured(self, positions: list[float], tmp_path: Path) -> None:
        with open_volume(self.stack(tmp_path / "r.h5", positions)) as volume:
            affine = volume.image_affine((12, 10))
            measured_numbers = []
            for index in range(len(volume)):
                number = round(float(np.abs(volume.kspace(index) / self.kspace).mean())) - 1
                measured_numbers.append(number)
                middle = (affine @ [6, 5, index, 1])[:3]
                np.testing.assert_allclose(middle, [-3, 4, positions[number]], atol=1e-4)
        steps = np.diff(positions)
        if (steps > 0).all() or (steps < 0).all():  # the scanner's own numbers stay
            assert measured_numbers == list(range(len(positions)))

    def test_calibration_lines_go_with_their_slice(self, tmp_path: Path) -> None:
        path = tmp_path / "r.h5"
        lines: list[Line] = []
        for number, z in enumerate([0.0, 10.0, 5.0]):
            head: dict[str, Any] = dict(zip(("read_dir", "phase_dir", "slice_dir"), np.eye(3), strict=True))
            head["position"] = (0.0, 0.0, z)
            for flags in ((), (20,)):
                lines += lines_of((number + 1) * self.kspace, counters={"slice": number}, head=head, flags=flags)
        with open_volume(write_raw(path, lines, (12, 10), mode="separate")) as volume:
            for index in range(3):
                np.testing.assert_array_equal(volume.calibration(index), volume.kspace(index))

    @pytest.mark.parametrize(
        ("positions", "turned", "line"),
        [
            ([0, 5, 20], None, "the slices are not evenly spaced along one line (between 5 and 15 mm apart)"),
            ([0, 5, 5], None, "two slices lie at one position (5 mm apart elsewhere)"),
            ([0, 5, 10], 1, "the slices are not parallel to one another"),
        ],
    )
    def test_what_no_grid_holds_is_refused_where_one_is_needed(
        self, positions: list[float], turned: int | None, line: str, tmp_path: Path
    ) -> None:
        with open_volume(self.stack(tmp_path / "r.h5", positions, turned)) as volume:
            with pytest.raises(ValueError, match=re.escape(line)):
                volume.image_affine((12, 10))
            volume.slice(0)

    def test_order_and_evenness(self) -> None:
        normal = np.array([0.0, 0.6, 0.8])
        along = np.array([4.0, 1.0, 3.0, 2.0])
        order, evidence = slice_order(along[:, None] * normal, normal)
        assert along[order].tolist() == [1, 2, 3, 4]
        assert "sorted" in evidence
        directions = np.broadcast_to(np.eye(3), (4, 3, 3))
        assert unevenness(along[order][:, None] * normal, directions) == ""
        assert slice_order(np.zeros((3, 3)), normal)[0].tolist() == [0, 1, 2]


# --- noise


def test_a_noise_scan_whitens_the_coils(tmp_path: Path) -> None:
    """Noise that is correlated and unequal over the coils is white in what `slice` gives, on the same scale."""
    rng = np.random.default_rng(1)
    mixing = np.array([[1.0, 0.0], [0.8, 3.0]])

    def noise(*shape: int) -> Array:
        return np.einsum("cd,d...->c...", mixing, rng.normal(size=(2, *shape)) + 1j * rng.normal(size=(2, *shape)))

    scan = [Line(noise(512), 0, (19,)) for _ in range(4)]
    lines = lines_of(noise(64, 60).astype(np.complex64))
    path = write_raw(tmp_path / "r.h5", scan + lines, (64, 60))
    with open_volume(path) as volume:
        assert volume.noise is not None
        white = volume.slice(0).kspace.reshape(2, -1)
        plain = volume.kspace(0).reshape(2, -1)
    covariance = white @ white.conj().T / white.shape[1]
    level = np.trace(plain @ plain.conj().T).real / plain.shape[1] / 2
    np.testing.assert_allclose(covariance, level * np.eye(2), atol=0.1 * level)
    with open_volume(path, whiten=False) as volume:
        np.testing.assert_array_equal(volume.slice(0).kspace, volume.kspace(0))


# --- references


class TestReference:
    @pytest.fixture
    def file(self, kspace: Array, tmp_path: Path) -> Callable[..., Path]:
        truth = np.sqrt((np.abs(image(kspace)) ** 2).sum(1))[:, 4:-4].astype(np.float32)

        def make(change: Callable[[Array], Array], **data: Any) -> Path:
            return write(tmp_path / "a.h5", kspace=kspace, reconstruction_rss=change(truth), **data)

        return make

    def scored(self, file: Path, **options: Any) -> Any:
        given = Undersampling("equispaced_fraction", 4.0, 0.16)
        return evaluate("rim-small", file, baselines=("zero_filled",), undersampling=given, quiet=True, **options)

    def test_another_scale(self, file: Callable[..., Path]) -> None:
        plain = self.scored(file(lambda truth: truth))
        assert plain.failures == []
        scaled = file(lambda truth: 250 * truth)
        assert (
            "250 times the image of it; fastmri metrics depend on the scale. Pass --scale-reference"
            in (self.scored(scaled).failures[0])
        )
        assert "depend on the scale" in self.scored(scaled, metrics="calgary_campinas").failures[0]
        table = self.scored(scaled, scale_reference=True)
        for row, expected in zip(table.rows, plain.rows, strict=True):
            assert row[1:4] == pytest.approx(expected[1:4], rel=1e-4)
        assert "it is divided by that" in table.notes[0]
        free = self.scored(scaled, metrics="scale_invariant")
        assert len(free.rows) == 2
        assert "do not depend on it" in free.notes[0]

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("upside down", lambda x: x[:, ::-1]),
            ("left to right", lambda x: x[..., ::-1]),
            ("turned by 180 degrees", lambda x: x[:, ::-1, ::-1]),
            ("rolled by half its size", lambda x: np.fft.fftshift(x, (-2, -1))),
            ("transposed", lambda x: x.swapaxes(1, 2)),
        ],
    )
    def test_another_orientation(self, name: str, change: Callable[[Array], Array], file: Callable[..., Path]) -> None:
        table = self.scored(file(change))
        assert table.rows == []
        assert f"the reference image is {name} against the image of the k-space" in table.failures[0]

    def test_of_something_else(self, file: Callable[..., Path]) -> None:
        rng = np.random.default_rng(0)
        line = "the reference image of slice 0 is not that of the k-space"
        assert line in self.scored(file(lambda x: rng.random(x.shape).astype(np.float32))).failures[0]
        unlike = self.scored(file(lambda x: x / np.array([1, 3], np.float32)[:, None, None]), scale_reference=True)
        assert "the reference images are not on one scale" in unlike.failures[0]

    def test_a_reference_on_its_scale_is_never_scaled(
        self, kspace: Array, file: Callable[..., Path], tmp_path: Path
    ) -> None:
        """Undersampled k-space has less energy than its reference; that is no factor between their scales."""
        truth = np.sqrt((np.abs(image(kspace)) ** 2).sum(1)).astype(np.float32)
        data = np.where(every(4, WIDTH), kspace, 0)
        path = write(tmp_path / "b.h5", kspace=data, reconstruction_rss=truth)
        tables = [
            evaluate("rim-small", path, baselines=("zero_filled",), maps="rss", quiet=True, scale_reference=scaled)
            for scaled in (False, True)
        ]
        assert [row[1:4] for row in tables[0].rows] == [row[1:4] for row in tables[1].rows]
        assert tables[0].failures == tables[1].failures == []

    def test_the_zero_filled_image_is_no_truth(self, kspace: Array, tmp_path: Path) -> None:
        data = np.where(every(4, WIDTH), kspace, 0)
        images = np.sqrt((np.abs(image(data)) ** 2).sum(1)).astype(np.float32)
        table = evaluate(
            "rim-small", write(tmp_path / "a.h5", kspace=data, reconstruction_rss=images), maps="rss", quiet=True
        )
        assert "is the zero-filled image of the undersampled k-space, no truth" in table.failures[0]


# --- inspect, and what is written


def facts(*files: Path, **options: Any) -> dict[str, tuple[str, str]]:
    found = inspect(list(files), **options)
    assert found.problems == {}
    return {fact.what: (fact.value, fact.evidence) for rows in found.files.values() for fact in rows}


def test_inspect_names_what_is_known_and_from_where(kspace: Array, tmp_path: Path) -> None:
    mask = every(4, WIDTH)
    bad = np.where(mask, kspace, 0)
    bad[0, 1, 2, 20] = np.nan
    file = write(tmp_path / "a.h5", kspace=bad, ismrmrd_header=header_of((HEIGHT, WIDTH), COILS, (0, 0)))
    found = facts(file)
    assert found["slices, coils"][0] == "2, 3"
    assert found["sampling"] == (
        "undersampled: 18 of 40 columns",
        "18 of 40 columns hold samples, the others are zero in all coils",
    )
    assert found["acceleration"][0] == f"{37 / 18:.2f}"
    assert found["calibration"][0] == "11 columns"
    assert found["padding"] == ("none", "the header's encoding limits name columns that hold samples")
    assert found["slices that do not serve"][0] == "slice 0 has 1 samples that are NaN or infinite; expected numbers"
    assert found["reference image"][0] == "none: only --holdout can score it"


def test_inspect_of_several_volumes_and_of_a_file_that_is_none(tmp_path: Path) -> None:
    one = random_kspace(2, 12, 10)
    path = write_raw(
        tmp_path / "r.h5", lines_of(one) + lines_of(one[:, :, ::2].repeat(2, 2), counters={"contrast": 1}), (12, 10)
    )
    (tmp_path / "b.h5").write_text("no k-space")
    found = inspect([path, tmp_path / "b.h5"])
    rows = {fact.what: fact.value for fact in found.files[path]}
    assert rows["volumes"] == "echo1, echo2"
    assert "is not an HDF5 file" in found.problems[tmp_path / "b.h5"]
    with pytest.raises(ValueError, match="is not an HDF5 file"):
        found.show()


@pytest.mark.parametrize("convention", ["centered-ortho", "uncentered-ortho", "recentered-ortho"])
def test_complex_images_have_the_phase_of_the_scan(convention: str, make_checkpoint: Any, tmp_path: Path) -> None:
    """Whatever the network's own transform makes of it."""
    centred, maps, truth = phantom_slice(HEIGHT, WIDTH, COILS, 11, noise=0.0)
    write(tmp_path / "a.h5", kspace=centred[None])
    write(tmp_path / "maps.h5", maps=maps)
    model = make_checkpoint(fft=convention)
    arguments = {"maps": str(tmp_path / "maps.h5"), "quiet": True, "preview": False}
    found = {}
    for kind in ("complex", "phase", "magnitude"):
        (result,) = reconstruct(model, tmp_path / "a.h5", tmp_path / kind, image=kind, **arguments)
        assert result.error is None
        with h5py.File(result.outputs[0]) as written:
            found[kind] = written["reconstruction"][0]
            assert written.attrs["part"] == kind
    np.testing.assert_allclose(np.abs(found["complex"]), found["magnitude"], rtol=1e-3, atol=1e-4)
    inside = np.abs(truth) > 0.2 * np.abs(truth).max()
    turn = found["complex"][inside] * truth[inside].conj()
    agreement = np.abs(turn.sum()) / np.abs(turn).sum()
    assert agreement > 0.99
    np.testing.assert_allclose(np.angle(found["complex"])[inside], found["phase"][inside], atol=1e-4)


def test_a_seam_is_named_where_another_transform_removes_it(
    command: Any, make_checkpoint: Any, kspace: Array, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.h5", kspace=kspace)
    line = "leaves a seam through the middle of the image; --fft recentered-ortho is the same transform without it"
    for convention, said in (("uncentered-ortho", True), ("recentered-ortho", False), ("centered-ortho", False)):
        model = make_checkpoint(fft=convention)
        shown = " ".join(command("info", model).stdout.replace("│", " ").split())
        assert (line in shown) == said, convention
        (result,) = reconstruct(model, file, tmp_path / convention, maps="rss", quiet=True, preview=False)
        assert any(line in note for note in result.notes) == said, convention


def test_inputs_of_one_name_have_results_of_their_own(kspace: Array, tmp_path: Path) -> None:
    for factor, folder in ((1, "monday"), (2, "tuesday")):
        (tmp_path / "scans" / folder).mkdir(parents=True)
        write(tmp_path / "scans" / folder / "scan.h5", kspace=factor * kspace)
    results = reconstruct("rim-small", tmp_path / "scans", tmp_path / "out", maps="rss", quiet=True)
    written = [[str(path.relative_to(tmp_path / "out")) for path in result.outputs] for result in results]
    assert written == [[f"{day}/scan.h5", f"{day}/scan.png"] for day in ("monday", "tuesday")]
    one, other = (h5py.File(result.outputs[0])["reconstruction"][()] for result in results)
    np.testing.assert_allclose(other, 2 * one, rtol=1e-3, atol=1e-3 * one.max())
    table = evaluate(
        "rim-small",
        tmp_path / "scans",
        baselines=("zero_filled",),
        undersampling=Undersampling("random", 4.0, 0.3),
        maps="rss",
        out=tmp_path / "scores",
        quiet=True,
    )
    assert table.failures == []
    text = (tmp_path / "scores" / "metrics.csv").read_text()
    assert text.count("monday/scan.h5") == text.count("tuesday/scan.h5") == 2 * 3


def test_repetitions_are_reconstructed_one_by_one(tmp_path: Path) -> None:
    one = phantom_slice(64, 48, 2, 3, noise=0.01)[0]
    lines = lines_of(one) + lines_of(3 * one, counters={"repetition": 1})
    path = write_raw(tmp_path / "r.h5", lines, (64, 48))
    (result,) = reconstruct("rim-small", path, tmp_path / "out", maps="rss", quiet=True, formats=("fastmri", "dicom"))
    assert [path.name for path in result.outputs] == [
        f"r_repetition{n}{end}" for n in (1, 2) for end in (".h5", "_dicom", ".png")
    ]
    assert "holds 2 volumes (repetitions), which are kept apart: repetition1, repetition2" in result.notes
    images = [h5py.File(tmp_path / "out" / f"r_repetition{n}.h5")["reconstruction"][()] for n in (1, 2)]
    np.testing.assert_allclose(images[1], 3 * images[0], rtol=1e-3, atol=1e-3 * images[1].max())
    (again,) = reconstruct(
        "rim-small", path, tmp_path / "out", maps="rss", quiet=True, formats=("fastmri", "dicom"), resume=True
    )
    assert (again.outputs, again.seconds) == (
        [*(p for p in result.outputs if p.suffix != ".png"), *(p for p in result.outputs if p.suffix == ".png")],
        0.0,
    )
    (alone,) = reconstruct(
        "rim-small", path, tmp_path / "two", maps="rss", quiet=True, preview=False, part="repetition2"
    )
    with h5py.File(alone.outputs[0]) as written:
        np.testing.assert_array_equal(written["reconstruction"][()], images[1])


def test_every_slice_is_completed_by_its_own_lines(tmp_path: Path) -> None:
    """The middle slice is whole, the others are not."""
    data = np.stack([phantom_slice(64, 48, 1, (6, n), noise=0.0)[0] for n in range(3)])
    data[0, ..., 32:] = data[2, ..., 32:] = 0
    file = write(tmp_path / "a.h5", kspace=data)
    images = {}
    for method in ("zero", "pocs"):
        (result,) = reconstruct(
            "rim-small", file, tmp_path / method, coils=1, partial_fourier=method, quiet=True, preview=False
        )
        with h5py.File(result.outputs[0]) as written:
            images[method] = written["reconstruction"][()]
    change = [np.abs(a - b).max() / a.max() for a, b in zip(images["zero"], images["pocs"], strict=True)]
    assert change[1] < 1e-5
    assert min(change[0], change[2]) > 1e-2


def test_a_file_of_one_volume_has_no_parts(kspace: Array, tmp_path: Path) -> None:
    for path in (write(tmp_path / "a.h5", kspace=kspace), write_raw(tmp_path / "r.h5", lines_of(kspace[0]), (48, 40))):
        with pytest.raises(ValueError, match="has no part 'echo2'; it holds one volume"):
            open_volume(path, part="echo2")


def test_partial_fourier_is_completed_when_asked(tmp_path: Path) -> None:
    y, x = np.mgrid[-1:1:64j, -1:1:48j]
    truth = (np.hypot(x / 0.7, y / 0.8) < 1) * (1.0 + 0.3 * np.sin(9 * x)) * np.exp(1j * (0.6 * x + 0.4 * y))
    axes = (-2, -1)
    full = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(truth, axes), norm="ortho"), axes)
    cut = full.copy()
    cut[:, 32:] = 0  # two thirds of the columns
    file = write(tmp_path / "a.h5", kspace=cut[None, None].astype(np.complex64))
    found = facts(file, coils=1)
    assert found["partial Fourier"][0] == "67% of the columns, 0 to 31"
    errors = {}
    for method in ("zero", "homodyne", "pocs"):
        (result,) = reconstruct(
            "rim-small", file, tmp_path / method, coils=1, partial_fourier=method, quiet=True, preview=False
        )
        with h5py.File(result.outputs[0]) as written:
            errors[method] = float(np.linalg.norm(written["reconstruction"][0] - np.abs(truth)))
    assert errors["pocs"] < 0.7 * errors["zero"]
    assert errors["homodyne"] < 0.8 * errors["zero"]
