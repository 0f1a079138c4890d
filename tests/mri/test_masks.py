"""Sampling masks: bit-equal to the authors' generators, and what holds for every kind."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.core.testing import Golden, golden, golden_files
from recurra.mri.masks import (
    MASKS,
    CalgaryCampinas,
    Equispaced2D,
    EquispacedFraction,
    Gaussian1D,
    Gaussian2D,
    Magic,
    MagicFraction,
    MaskGenerator,
    Mixed,
    Poisson2D,
    Random,
    centered_disk,
    circular_acs,
    file_seed,
    sigpy_poisson,
)

DIRECT = {"Random": "random", "Equispaced": "equispaced_fraction", "Magic": "magic_fraction"}


def seed_of(stored: int | list[int]) -> int | tuple[int, ...]:
    return tuple(stored) if isinstance(stored, list) else stored


def raises(pair: Golden, key: str) -> bool:
    """Whether the reference refuses this input."""
    return "raises" in str(pair.config.get("extra", {}).get(key, ""))


@pytest.mark.parity
@pytest.mark.parametrize("path", golden_files("mri", "masks*"), ids=lambda path: path.stem)
class TestParity:
    def test_fastmri(self, path: Path) -> None:
        pair = golden(path)
        config = pair.config
        checked = 0
        for key in sorted({*pair.outputs, *config.get("extra", {})}):
            match = re.fullmatch(r"fastmri_(\w+)_s(\d+)_c(\d+)_k(\d+)", key)
            if match is None:
                continue
            kind, (shape, combo, seed) = match[1], map(int, match.groups()[1:])
            fractions, accelerations = config["combos"][combo]
            matrix = tuple(config["shapes"][shape][-3:-1])
            generator = MASKS[kind](accelerations, fractions)
            if raises(pair, key):
                with pytest.raises(ValueError, match="centre lines"):
                    generator(matrix, seed=seed_of(config["seeds"][seed]))
            else:
                mask = generator(matrix, seed=seed_of(config["seeds"][seed]))
                np.testing.assert_array_equal(mask.sampling[0], pair.outputs[key].numpy().astype(bool), err_msg=key)
                assert mask.acs.sum() == pair.outputs[f"{key}_nlow"], key
            checked += 1
        assert checked or not any(key.startswith("fastmri") for key in pair.outputs)

    def test_direct(self, path: Path) -> None:
        pair = golden(path)
        config = pair.config
        for key, expected in pair.outputs.items():
            match = re.fullmatch(r"direct_(FastMRI|Cartesian)(\w+)_c(\d+)_k(\d+)", key)
            if match is None:
                continue
            family, kind, combo, seed = match[1], match[2], int(match[3]), int(match[4])
            fractions, accelerations = config["combos"][combo]
            acs = pair.outputs[f"{key}_acs"].numpy().astype(bool)
            if family == "Cartesian":  # the number of centre lines is told by its own calibration mask alone
                fractions = [int(acs.sum())] * len(accelerations)
            mask = MASKS[DIRECT[kind]](accelerations, fractions)(
                tuple(config["shapes"][0][2:4]), seed=seed_of(config["seeds"][seed])
            )
            np.testing.assert_array_equal(mask.sampling[0], expected.numpy().astype(bool), err_msg=key)
            np.testing.assert_array_equal(mask.acs[0], acs, err_msg=key)

    def test_extra(self, path: Path) -> None:
        pair = golden(path)
        for key, extra in pair.config.get("extra", {}).items():
            if key not in pair.outputs:
                continue
            expected = pair.outputs[key].numpy().astype(bool)
            np.testing.assert_array_equal(self.extra(key, extra).reshape(expected.shape), expected, err_msg=key)
        for key, value in pair.outputs.items():
            match = re.fullmatch(r"direct_circular(\d+)_(\d+)x(\d+)", key)
            if match:
                disk = circular_acs((int(match[2]), int(match[3])), int(match[1]))
                np.testing.assert_array_equal(disk, value.numpy().astype(bool))

    def extra(self, key: str, extra: dict[str, Any]) -> np.ndarray:
        if key.startswith("direct_centered_disk"):
            return centered_disk(tuple(extra["shape"]), extra["center_scale"])
        if key.startswith("sigpy_poisson"):
            return sigpy_poisson(
                tuple(extra["img_shape"]),
                extra["accel"],
                tuple(extra["calib"]),
                extra["seed"],
                crop_corner=extra["crop_corner"],
                tolerance=extra["tol"],
                max_attempts=extra["K"],
            )
        kind = re.fullmatch(r"atommic_(\w+)_\d+", key)
        seed = re.search(r"seed\((\d+)\)", extra["seed"])
        assert kind, key
        assert seed, key
        values = [extra["acceleration"]], [extra["fwhm_or_center_fraction"]]
        generators: dict[str, MaskGenerator] = {
            "gaussian1d": Gaussian1D(*values, center_scale=extra["center_scale"], corner_origin=True),
            "gaussian2d": Gaussian2D(*values, center_scale=extra["center_scale"]),
            "equispaced2d": Equispaced2D(*values),
            "equispaced1d": EquispacedFraction(*values),
            "random1d": Random(*values),
        }
        return generators[kind[1]](tuple(extra["shape"][-3:-1]), seed=int(seed[1])).sampling


RANDOM_KINDS = sorted(set(MASKS) - {"calgary_campinas", "poisson2d", "poisson2d_direct", "mixed"})


def build(kind: str, acceleration: float = 4) -> MaskGenerator:
    return MASKS[kind]([acceleration], [0.7 if kind in ("gaussian1d", "gaussian2d") else 0.08])


@pytest.mark.parametrize("kind", sorted(set(MASKS) - {"calgary_campinas", "mixed"}))
def test_the_global_generator_is_left_alone(kind: str) -> None:
    np.random.seed(7)
    expected = np.random.uniform(size=3)
    np.random.seed(7)
    first = build(kind)((48, 64), seed=(1, 2, 3))
    np.testing.assert_array_equal(np.random.uniform(size=3), expected)
    again = build(kind)((48, 64), seed=(1, 2, 3))
    np.testing.assert_array_equal(first.sampling, again.sampling)


@given(
    kind=st.sampled_from(RANDOM_KINDS), height=st.integers(32, 96), width=st.integers(48, 128), seed=st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_centre_sampled_and_acceleration_near(kind: str, height: int, width: int, seed: int) -> None:
    mask = build(kind)((height, width), seed=seed)
    assert mask.sampling.shape in ((1, width), (height, width))
    assert mask.sampling.dtype == mask.acs.dtype == bool
    assert mask.sampling[mask.acs].all()
    assert mask.acceleration == 4
    # equispaced keeps its centre on top of every fourth column, a random mask has the spread of a binomial
    assert 1 / 4 * 0.4 < mask.sampling.mean() < 1 / 4 * 1.9


@pytest.mark.parametrize("kind", ["gaussian1d_direct", "gaussian2d_direct"])
def test_direct_gaussians_reach_the_acceleration_exactly(kind: str) -> None:
    mask = MASKS[kind]([5], [0.04])((100, 150), seed=3)
    assert mask.sampling.mean() == pytest.approx(1 / 5, rel=1e-2)
    centre = np.mean([MASKS[kind]([5], [0.04])((100, 150), seed=seed).sampling[:, 50:100] for seed in range(9)])
    assert centre > 1.3 / 5


@pytest.mark.parametrize("kind", ["poisson2d", "poisson2d_direct"])
def test_poisson_disks_keep_their_distance_and_acceleration(kind: str) -> None:
    mask = MASKS[kind]([8], [0.02])((96, 80), seed=(4, 5))
    assert mask.sampling[mask.acs].all()
    assert 1 / mask.sampling.mean() == pytest.approx(8, abs=1.5)
    outer = mask.sampling.copy()
    outer[24:72, 20:60] = False
    rows, columns = np.nonzero(outer)
    distance = np.hypot(rows[:, None] - rows, columns[:, None] - columns) + 1e9 * np.eye(len(rows))
    # places are rounded down to the grid; of as many independent samples, six in ten had a direct neighbour
    assert np.mean(distance.min(axis=1) < 2) < 0.15


def test_poisson_widens_its_tolerance_rather_than_fail() -> None:
    mask = Poisson2D([6], [0.1], tolerance=1e-4, attempts=4)((40, 36), seed=0)
    assert mask.acceleration == 6
    assert abs(1 / mask.sampling.mean() - 6) < 5e-4


def test_an_unreachable_poisson_mask_is_refused_and_does_not_hang() -> None:
    line = (
        "Poisson2D: no Poisson-disk mask of a 40 x 36 matrix comes within 1.2 of acceleration 8; "
        "raise tolerance or lower the center fraction"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        Poisson2D([8], [0.8], attempts=1)((40, 36), seed=0)


def test_padding_is_never_sampled_and_an_empty_one_is_ignored() -> None:
    generator = Random([2], [0.2])
    free, padded = generator((8, 100), seed=1), generator((8, 100), seed=1, padding=(10, 90))
    np.testing.assert_array_equal(padded.sampling[:, 10:90], free.sampling[:, 10:90])
    assert not padded.sampling[:, :10].any()
    assert not padded.sampling[:, 90:].any()
    np.testing.assert_array_equal(padded.acs, free.acs)
    np.testing.assert_array_equal(generator((8, 100), seed=1, padding=(0, 0)).sampling, free.sampling)


def test_the_seed_of_a_file_is_its_name() -> None:
    assert file_seed("/data/knee/file1.h5") == file_seed("file1.h5") == (102, 105, 108, 101, 49, 46, 104, 53)


def test_both_accelerations_are_drawn() -> None:
    generator = EquispacedFraction([4, 8], [0.08, 0.04])
    assert {generator((16, 96), seed=seed).acceleration for seed in range(20)} == {4.0, 8.0}


def test_a_number_of_centre_lines_may_replace_the_fraction() -> None:
    mask = Random([4], [12])((8, 100), seed=0)
    assert np.flatnonzero(mask.acs[0]).tolist() == list(range(44, 56))


def test_magic_halves_interleave() -> None:
    mask = Magic([4], [0.0])((8, 128), seed=5).sampling[0]
    frequency = np.flatnonzero(mask) - 64
    assert not set(frequency) & set(-frequency)


class TestCalgaryCampinas:
    def collection(self, folder: Path) -> tuple[Path, np.ndarray]:
        masks = np.random.default_rng(0).uniform(size=(3, 20, 18)) < 0.2
        path = folder / "masks.npz"
        packed = np.packbits(masks.reshape(3, -1), axis=1)
        np.savez(path, R5_20x18=packed, R5_20x18_shape=masks.shape, R10_20x18=masks)
        return path, masks

    def test_masks_packed_and_not(self, tmp_path: Path) -> None:
        path, masks = self.collection(tmp_path)
        for acceleration in (5, 10):
            generator = CalgaryCampinas(str(path), accelerations=[acceleration])
            mask = generator((20, 18), seed=9)
            np.testing.assert_array_equal(mask.sampling, masks[np.random.RandomState(9).randint(0, 3)])
            np.testing.assert_array_equal(mask.acs, circular_acs((20, 18)))

    def test_another_shape_is_refused(self, tmp_path: Path) -> None:
        path, _ = self.collection(tmp_path)
        line = f"{path}: no masks 'R5_20x20'; expected one of R5_20x18, R10_20x18"
        with pytest.raises(ValueError, match=re.escape(line)):
            CalgaryCampinas(str(path), accelerations=[5])((20, 20), seed=0)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: Random([4, 8], [0.08]),
            "Random: accelerations and center_fractions must be equally long and not empty; got [4, 8] and [0.08]",
        ),
        (lambda: Random([0.5], [0.08]), "Random: accelerations must be at least 1; got [0.5]"),
        (lambda: Random([4], [-0.1]), "Random: center_fractions must not be negative; got [-0.1]"),
        (
            lambda: MagicFraction([8], [0.5])((8, 64), seed=0),
            "MagicFraction: the 8 centre lines of 64 columns already exceed acceleration 8; "
            "use a smaller center fraction or acceleration",
        ),
        (
            lambda: EquispacedFraction([8], [0.5])((8, 64), seed=0),
            "EquispacedFraction: the 32 centre lines of 64 columns already exceed acceleration 8; "
            "use a smaller center fraction or acceleration",
        ),
        (
            lambda: Random([4], [0.1])((8, 64), seed=0, padding=(64, 64)),
            "Random keeps no sample of a 8 x 64 matrix: Random(accelerations=[4], center_fractions=[0.1])",
        ),
        (lambda: Poisson2D([1], [0.1]), "Poisson2D: accelerations must be above 1; got [1]"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: Any, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        make()


def test_mixed_draws_every_kind_by_its_weight() -> None:
    sections = [
        {"name": "equispaced_fraction", "accelerations": [4], "center_fractions": [0.08]},
        {"name": "gaussian2d", "accelerations": [8], "center_fractions": [0.7], "center_scale": 0.05},
    ]
    mixed = Mixed(sections, [0.75, 0.25])
    masks = [mixed((48, 64), seed=seed) for seed in range(200)]
    columns = [mask.sampling.shape[0] == 1 for mask in masks]
    assert 0.65 < np.mean(columns) < 0.85
    assert {mask.acceleration for mask, column in zip(masks, columns, strict=True) if column} == {4.0}
    np.testing.assert_array_equal(masks[0].sampling, mixed((48, 64), seed=0).sampling)


@pytest.mark.parametrize(
    ("masks", "weights", "message"),
    [
        ([], None, "Mixed: masks must name one or more of"),
        ([{"name": "spiral"}], None, "got spiral"),
        (
            [{"name": "random", "accelerations": [4], "center_fractions": [0.1]}],
            [0.5, 0.5],
            "weights must be 1 numbers",
        ),
    ],
)
def test_mixed_refuses(masks: list[dict[str, object]], weights: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixed(masks, weights)
