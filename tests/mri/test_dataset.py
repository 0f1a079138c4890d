"""Datasets: what a sample holds, the seed law, caches, ragged shapes, and the recipe's sections."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from recurra.core.recipe import build
from recurra.core.sampling import Data, train_loader, validation_loader
from recurra.mri.data import open_volume, sources, write_sample
from recurra.mri.data.dataset import PhantomDataset, SliceDataset
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.data.sample import write_volume
from recurra.mri.data.sources import DATA, collate
from recurra.mri.masks import Gaussian2D, Random, file_seed
from recurra.mri.operators import center_crop, fft, ifft, rss
from recurra.mri.preprocess import Preprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    write_sample(root, slices=3, height=48, width=40, coils=3, train=2, val=1, seed=4)
    return root


def slices(folder: Path, **options: Any) -> SliceDataset:
    options = {"mask": Random([4], [0.2]), "seed": 1, **options}
    return SliceDataset(sorted((folder / "train").iterdir()), Preprocess(), **options)


def phantoms(**options: Any) -> PhantomDataset:
    options = {"mask": Random([4], [0.2]), "height": 48, "width": 40, "coils": 3, "seed": 3, **options}
    return PhantomDataset(6, Preprocess(), **options)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(first.values(), second.values(), strict=True)
    )


@pytest.mark.parametrize("kind", ["files", "phantoms"])
def test_a_sample_is_masked_scaled_and_complete(kind: str, folder: Path) -> None:
    dataset = slices(folder) if kind == "files" else phantoms()
    item = dataset[2]
    assert item["kspace"].dtype == item["sensitivity"].dtype == torch.complex64
    assert item["kspace"].shape == item["sensitivity"].shape == (3, 48, 40)
    assert item["mask"].shape == (1, 1, 40)
    assert item["target"].shape == ((40, 40) if kind == "files" else (48, 40))
    assert item["target"].dtype == torch.float32
    assert not item["kspace"][~item["mask"].expand(3, 48, 40)].any()
    assert item["index"] == 2
    magnitude = item["kspace"].abs().flatten()
    assert 0.985 < (magnitude <= 1).float().mean() < 0.995  # the scale is the 99 % quantile
    zero_filled = rss(ifft(item["kspace"])[None])[0]
    if kind == "phantoms":
        error = (zero_filled - item["target"]).norm() / item["target"].norm()
        assert 0.01 < error < 0.6


def test_the_target_of_a_file_is_the_image_of_its_kspace(folder: Path) -> None:
    dataset = slices(folder)
    path, index = dataset.slices[4]
    with open_volume(path) as volume:
        coils = ifft(torch.from_numpy(volume.kspace(index)))
        assert volume.recon_size is not None
        expected = center_crop(rss(coils[None])[0], volume.recon_size).numpy()
    item = dataset[4]
    np.testing.assert_allclose(item["target"] * item["scale"], expected, rtol=1e-4, atol=1e-6)


class TestSeedLaw:
    @pytest.mark.parametrize("kind", ["files", "phantoms"])
    def test_a_sample_depends_on_seed_epoch_and_index_alone(self, kind: str, folder: Path) -> None:
        def make(seed: int) -> Any:
            return slices(folder, seed=seed) if kind == "files" else phantoms(seed=seed)

        first, second, other = make(5), make(5), make(6)
        last = [second[n] for n in reversed(range(6))][::-1]
        assert all(same(first[n], last[n]) for n in range(6))
        assert not all(torch.equal(first[n]["mask"], other[n]["mask"]) for n in range(6))
        first.set_epoch(1)
        assert not all(torch.equal(first[n]["mask"], last[n]["mask"]) for n in range(6))
        first.set_epoch(0)
        assert all(same(first[n], last[n]) for n in range(6))

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_the_number_of_workers_changes_nothing(self) -> None:
        alone = list(torch.utils.data.DataLoader(phantoms(), batch_size=2))
        shared = list(torch.utils.data.DataLoader(phantoms(), batch_size=2, num_workers=2))
        assert all(same(a, b) for a, b in zip(alone, shared, strict=True))

    def test_validation_masks_are_those_of_the_files_name(self, folder: Path) -> None:
        dataset = slices(folder, seed=None)
        expected = Random([4], [0.2])((48, 40), seed=file_seed(dataset.slices[0][0])).sampling
        for epoch in (0, 1):
            dataset.set_epoch(epoch)
            np.testing.assert_array_equal(dataset[0]["mask"][0], expected)
            np.testing.assert_array_equal(dataset[2]["mask"][0], expected)

    def test_fixed_phantoms_stay_the_same(self) -> None:
        dataset = phantoms(fixed=True)
        before = dataset[1]
        dataset.set_epoch(7)
        assert same(before, dataset[1])


def test_a_cache_changes_nothing_but_the_reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, kept = slices(folder), slices(folder, cache=1.0)
    assert all(same(plain[n], kept[n]) for n in range(len(plain)))
    monkeypatch.setattr("recurra.mri.data.dataset.open_volume", lambda *_, **__: pytest.fail("the file was read again"))
    assert same(kept[0], kept[0])


def test_a_cache_reports_what_the_reader_said(tmp_path: Path) -> None:
    kspace = phantom_slice(48, 40, 3, 1)[0][None]
    kspace[0, 0, 0, 0] = np.nan
    write_volume(tmp_path / "a.h5", kspace)
    with pytest.raises(ValueError, match="slice 0 has 1 samples that are NaN or infinite"):
        SliceDataset([tmp_path / "a.h5"], Preprocess(), cache=1.0)


def test_what_was_measured_undersampled_is_no_truth(folder: Path, tmp_path: Path) -> None:
    for path in sorted((folder / "test").iterdir()):
        with pytest.raises(ValueError, match=r"was measured undersampled \(dataset 'mask'\); training compares"):
            SliceDataset([path], Preprocess(), mask=Random([2], [0.5]), seed=0)
    with h5py.File(tmp_path / "a.h5", "w") as file:  # only one slice of it is, and nothing says so
        kspace = np.stack([phantom_slice(48, 40, 3, n)[0] for n in range(3)])
        kspace[0, ..., 2::3] = 0
        file["kspace"] = kspace
    dataset = SliceDataset([tmp_path / "a.h5"], Preprocess(), mask=Random([2], [0.5]), seed=0)
    dataset[1]
    with pytest.raises(ValueError, match=r"a\.h5: was measured undersampled \(slice 0: 27 of 40 columns hold samples"):
        dataset[0]


def test_slices_that_hold_no_numbers_are_left_out_when_asked(tmp_path: Path) -> None:
    kspace = np.stack([phantom_slice(48, 40, 3, n)[0] for n in range(3)])
    kspace[1, 0, 0, 0] = np.inf
    write_volume(tmp_path / "a.h5", kspace)
    dataset = SliceDataset([tmp_path / "a.h5"], Preprocess(), skip_bad_slices=True)
    assert [index for _, index in dataset.slices] == [0, 2]


def test_acquisitions_and_outer_slices_are_left_out(folder: Path) -> None:
    assert len(slices(folder)) == 6
    assert {path.name for path, _ in slices(folder, acquisitions=["AXT2"]).slices} == {"phantom_train_1.h5"}
    assert [index for _, index in slices(folder, outer_slices=1).slices] == [1, 1]
    with pytest.raises(ValueError, match="no slices of acquisition AXFLAIR in 2 files; nothing to train on"):
        slices(folder, acquisitions=["AXFLAIR"])
    with pytest.raises(ValueError, match="has 3 slices; nothing is left without the outer 2"):
        slices(folder, outer_slices=2)


def test_an_error_names_file_and_slice(folder: Path) -> None:
    path = sorted((folder / "train").iterdir())[0]
    dataset = SliceDataset([path], Preprocess(maps="espirit"), mask=Random([4], [0.05]), seed=0)
    line = (
        f"{path}: slice 1: ESPIRiT maps need at least 6 x 6 calibration samples; the mask has 24 x 2 (height x width) "
        "fully sampled in the centre. Use a larger center fraction, maps=rss, or give the maps"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        dataset[1]


class TestCalgaryCampinas:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """Volumes whose plain transform shows the phantom."""
        for name in ("Train", "Val"):
            (tmp_path / name).mkdir()
            images = np.stack([m * i for _, m, i in (phantom_slice(40, 32, 2, (9, n)) for n in range(6))])
            kspace = np.fft.fft2(images, norm="ortho")
            kspace[..., 28:] *= 1e-6  # what the scanner fills up
            parts = np.stack([kspace.real, kspace.imag], axis=-1).transpose(0, 2, 3, 1, 4).reshape(6, 40, 32, 4)
            with h5py.File(tmp_path / name / "e1.h5", "w") as file:
                file["kspace"] = parts.astype(np.float32)
        return tmp_path

    def test_slices_and_transform(self, root: Path) -> None:
        data = sources.calgary_campinas(
            str(root), outer_slices=2, workers=0, preparation=Preprocess(fft="uncentered-ortho")
        )
        assert len(data.train) == 2
        item = data.train[0]
        assert item["kspace"].shape == (2, 40, 32)
        assert not item["mask"][..., 28:].any()
        assert torch.allclose(rss(ifft(item["kspace"], "uncentered-ortho")[None])[0], item["target"], atol=1e-4)

    def test_a_centred_transform_is_refused(self, root: Path) -> None:
        data = sources.calgary_campinas(str(root), outer_slices=2, workers=0, preparation=Preprocess())
        with pytest.raises(ValueError, match="use fft: uncentered-ortho in place of centered-ortho"):
            data.train[0]


def test_uncentred_phantoms_have_a_target_where_their_image_is() -> None:
    dataset = PhantomDataset(1, Preprocess(fft="uncentered-ortho"), height=48, width=41, coils=3, seed=3, noise=0.0)
    item = dataset[0]
    image = rss(ifft(item["kspace"], "uncentered-ortho")[None])[0]
    torch.testing.assert_close(image, item["target"], atol=1e-4, rtol=1e-3)
    assert fft(ifft(item["kspace"], "uncentered-ortho"), "uncentered-ortho").shape == item["kspace"].shape


def test_a_batch_of_different_sizes_is_refused(tmp_path: Path) -> None:
    for width in (40, 44):
        kspace = phantom_slice(48, width, 3, 1)[0][None]
        write_volume(tmp_path / f"{width}.h5", kspace)
    dataset = SliceDataset(sorted(tmp_path.iterdir()), Preprocess(), mask=Random([4], [0.2]), seed=0)
    line = (
        "slices of different sizes cannot share a batch (3 x 48 x 40 and 3 x 48 x 44, coil x height x width); "
        "use train.batch_size=1"
    )
    with pytest.raises(ValueError, match=re.escape(line)):
        collate([dataset[0], dataset[1]])


def test_lines_and_planes_share_a_batch(folder: Path) -> None:
    path = sorted((folder / "train").iterdir())[:1]
    lines = SliceDataset(path, Preprocess(), mask=Random([2], [0.5]), seed=0)
    planes = SliceDataset(path, Preprocess(), mask=Gaussian2D([2]), seed=0)
    batch = collate([lines[0], planes[0]])
    assert batch["mask"].shape == (2, 1, 48, 40)


class TestRecipe:
    @pytest.mark.parametrize(
        "section",
        [
            {"name": "Sample"},
            {"name": "Phantom", "train": 3, "val": 2, "height": 32, "width": 32, "coils": 2, "noise": 0.01},
        ],
    )
    def test_sections(self, section: dict[str, Any]) -> None:
        data: Data = build(DATA, section, "x.yaml: data", mask=Random([4], [0.2]), preparation=Preprocess(), seed=1)
        batch = next(iter(train_loader(data, 1, processes=1, accumulate=1, seed=0)))
        assert batch["kspace"].ndim == 4
        assert not torch.equal(data.train[0]["target"], data.val[0]["target"])
        assert "generated phantoms" in data.about

    def test_files(self, folder: Path) -> None:
        section = {"name": "FastMRI", "path": str(folder), "workers": 0, "acquisitions": ["AXT1"]}
        data = build(DATA, section, "x.yaml: data", mask=Random([4], [0.2]), preparation=Preprocess(), seed=1)
        assert data.about.startswith("3 training and 3 validation slices of sample")
        loader = validation_loader(data, processes=1)
        assert loader is not None
        assert [int(batch["index"]) for batch in loader] == [0, 1, 2]

    def test_lists(self, folder: Path) -> None:
        (folder / "mine.txt").write_text("train/phantom_train_1.h5\n\n")
        data = sources.files(str(folder), train_files=str(folder / "mine.txt"), workers=0)
        assert {path.name for path, _ in data.train.slices} == {"phantom_train_1.h5"}  # type: ignore[attr-defined]

    def test_an_empty_folder_is_named(self, tmp_path: Path) -> None:
        line = f"{tmp_path}: no k-space files in train, Train, multicoil_train, singlecoil_train; set data.path"
        with pytest.raises(ValueError, match=re.escape(line)):
            sources.files(str(tmp_path))

    @pytest.mark.parametrize("option", ["crop", "acquisitions", "coil_compression"])
    def test_calgary_campinas_has_fewer_options(self, option: str) -> None:
        section = {"name": "CalgaryCampinas", option: None}
        with pytest.raises(ValueError, match=f"^x.yaml: data.{option}: CalgaryCampinas has no such option"):
            build(DATA, section, "x.yaml: data")
