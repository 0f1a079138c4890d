"""Metrics against the numbers of the authors' own evaluation code, and the rules around them."""

import math
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from recurra.core.evaluation import FileScores
from recurra.core.testing import assert_close, golden, golden_files
from recurra.mri.metrics import (
    METRICS,
    calgary_campinas_metrics,
    fastmri_metrics,
    nmse,
    psnr,
    scale_invariant_metrics,
    ssim,
    vif,
)


@pytest.fixture
def unhooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user: no shape hook in front of our own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def square_pair(seed: int = 0, shape: tuple[int, int, int] = (3, 20, 20)) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    target = generator.uniform(0.1, 1, shape)
    return target, target + 0.05 * generator.standard_normal(shape)


@pytest.mark.parity
@pytest.mark.parametrize("path", golden_files("mri", "metrics*"), ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    pair = golden(path)
    target, prediction = pair.inputs["target"].numpy(), pair.inputs["pred"].numpy()
    invariant = scale_invariant_metrics(target, prediction, per="volume")
    campinas = calgary_campinas_metrics(target, prediction)
    error = np.mean((target.astype(np.float64) - prediction) ** 2)
    ours = {
        "fastmri_MSE": error,
        "fastmri_NMSE": nmse(target, prediction),
        "fastmri_PSNR": psnr(target, prediction),
        "fastmri_PSNR_maxval": psnr(target, prediction, maxval=2.0),
        "fastmri_SSIM": ssim(target, prediction),
        "fastmri_SSIM_maxval": ssim(target, prediction, maxval=2.0),
        "direct_fastmri_nmse": nmse(target, prediction),
        "direct_fastmri_psnr": psnr(target, prediction),
        "direct_fastmri_ssim": ssim(target, prediction),
        "direct_calgary_campinas_psnr": campinas["psnr"],
        "direct_calgary_campinas_ssim": campinas["ssim"],
        **{f"atommic_{name.upper()}": value for name, value in invariant.items()},
    }
    for name in sorted(ours.keys() & pair.outputs.keys()):
        assert_close(ours[name], pair.outputs[name], pair.tolerance, name=name)
    assert ours.keys() & pair.outputs.keys()


def test_fastmri_scores_the_central_square() -> None:
    target, prediction = square_pair(shape=(3, 32, 20))
    cropped = fastmri_metrics(target[:, 6:26], prediction[:, 6:26])
    assert fastmri_metrics(target, prediction) == cropped
    # A prediction that was not cropped yet is scored over the same square.
    wide = np.pad(prediction, ((0, 0), (0, 0), (4, 4)), constant_values=9.0)
    assert fastmri_metrics(target, wide) == cropped


def test_fastmri_values_by_hand() -> None:
    target = np.full((2, 10, 10), 2.0)
    target[1] = 4.0
    scores = fastmri_metrics(target, target + 0.5)
    assert scores["nmse"] == pytest.approx(0.25 / 10)
    assert scores["psnr"] == pytest.approx(10 * math.log10(16 / 0.25))  # the volume's maximum, not the slice's
    c1 = (0.01 * 4) ** 2
    luminance = [(2 * t * (t + 0.5) + c1) / (t**2 + (t + 0.5) ** 2 + c1) for t in (2.0, 4.0)]
    assert scores["ssim"] == pytest.approx(np.mean(luminance))
    assert fastmri_metrics(target, target + 0.5, maxval=8.0)["psnr"] == pytest.approx(10 * math.log10(64 / 0.25))


def test_equal_volumes_score_perfectly() -> None:
    target, _ = square_pair(shape=(2, 48, 48))
    assert fastmri_metrics(target, target) == {"nmse": 0.0, "psnr": math.inf, "ssim": pytest.approx(1.0)}
    assert calgary_campinas_metrics(target, target)["vif"] == pytest.approx(1.0, abs=1e-6)


def test_only_the_scale_invariant_metrics_ignore_scale() -> None:
    target, prediction = square_pair()
    assert scale_invariant_metrics(target, 7 * prediction) == pytest.approx(scale_invariant_metrics(target, prediction))
    for score in (fastmri_metrics, calgary_campinas_metrics):
        assert score(target, 7 * prediction)["ssim"] < 0.6 * score(target, prediction)["ssim"]
    # A slice's own scale does not matter either, unless the volume is scored at once.
    stretched = prediction * np.array([1.0, 3.0, 0.5])[:, None, None]
    assert scale_invariant_metrics(target, stretched) == pytest.approx(scale_invariant_metrics(target, prediction))
    assert scale_invariant_metrics(target, stretched, per="volume")["nmse"] > 0.1


def vif_images(kind: str) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:64, 0:57].astype(float)
    target = np.exp(-((y - 30) ** 2 + (x - 28) ** 2) / 300) + 0.3 * (((y // 8) + (x // 8)) % 2)
    target[:, :9] = 0
    box = np.ones(5) / 5
    blurred = np.apply_along_axis(np.convolve, 0, target, box, "same")
    return target, {
        "blur": np.apply_along_axis(np.convolve, 1, blurred, box, "same"),
        "ripple": 0.9 * target + 0.05 * np.sin(0.7 * y + 1.3 * x),
        "inverse": 1.3 - target,
        "flat": np.full_like(target, 0.5),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "noise", "expected"),
    [
        ("blur", 0.4, 0.5439765686997116),
        ("blur", 2.0, 0.5400275042097893),
        ("ripple", 0.4, 0.8152183577455311),
        ("ripple", 2.0, 0.8110862666731602),
        ("inverse", 0.4, 0.0),
        ("flat", 2.0, 0.0),
    ],
)
def test_vif_equals_sewar(kind: str, noise: float, expected: float) -> None:
    # `expected` is what sewar 0.4.10's vifp(target, prediction, sigma_nsq=noise) gives for these images.
    assert vif(*vif_images(kind), noise=noise) == pytest.approx(expected, abs=1e-12)


def test_calgary_campinas_uses_vif_of_the_normalised_slice() -> None:
    target, prediction = vif_images("ripple")
    scores = calgary_campinas_metrics(5 * target[None], 5 * prediction[None])
    expected = vif(target / target.max(), prediction / target.max(), noise=0.4)
    assert scores["vif"] == pytest.approx(expected)
    assert math.isnan(calgary_campinas_metrics(*square_pair())["vif"])


def volume_scores(score=fastmri_metrics) -> FileScores:
    return FileScores(score, what="slices")


def test_volume_scores_equal_the_whole_volumes() -> None:
    volumes = {f"{seed}.h5": square_pair(seed) for seed in range(3)}
    scores = volume_scores(fastmri_metrics)
    for file, (target, prediction) in volumes.items():
        for t, p in zip(target, prediction, strict=True):
            scores.add(file, t, p)
            assert len(scores._pieces) <= len(target)
    scores.finish()
    assert scores.rows == {file: fastmri_metrics(*pair) for file, pair in volumes.items()}
    assert scores.mean()["ssim"] == pytest.approx(np.mean([row["ssim"] for row in scores.rows.values()]))
    scores.finish()
    assert len(scores.rows) == 3


def test_volume_scores_refuse_a_volume_in_two_parts() -> None:
    target, prediction = square_pair()
    scores = volume_scores(METRICS["fastmri"])
    assert scores.mean() == {}
    scores.add("a.h5", target[0], prediction[0])
    scores.add("b.h5", target[0], prediction[0])
    with pytest.raises(ValueError, match=r"^a.h5: its slices do not follow one another"):
        scores.add("a.h5", target[1], prediction[1])


def test_volume_scores_forget_a_discarded_file() -> None:
    target, prediction = square_pair()
    scores = volume_scores()
    for file in ("a.h5", "b.h5"):
        scores.add(file, target[0], prediction[0])
    scores.discard("a.h5")
    scores.discard("b.h5")
    scores.discard("never.h5")
    scores.finish()
    assert scores.rows == {}
    scores.add("a.h5", target[0], prediction[0])
    scores.finish()
    assert set(scores.rows) == {"a.h5"}


def test_volume_scores_name_the_file() -> None:
    target, prediction = square_pair()
    scores = volume_scores()
    scores.add("empty.h5", 0 * target[0], prediction[0])
    with pytest.raises(ValueError, match=r"^empty.h5: target is zero everywhere; the metrics divide by it$"):
        scores.finish()


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize("score", METRICS.values(), ids=METRICS.keys())
def test_refusals(score: object) -> None:
    assert callable(score)
    target, prediction = square_pair()
    with pytest.raises(ValueError, match=r"prediction has shape \(3, 20, 19\)"):
        score(target, prediction[:, :, :19])
    with pytest.raises(ValueError, match="prediction is complex"):
        score(target, prediction + 1j)
    with pytest.raises(ValueError, match="not finite"):
        score(target, np.where(prediction > 0.9, np.nan, prediction))
    with pytest.raises(ValueError, match=r"expected \(slice, height, width\)"):
        score(target[0], prediction[0])
    with pytest.raises(ValueError, match="at least 7 x 7"):
        score(target[:, :5], prediction[:, :5])


@pytest.mark.parametrize("score", [calgary_campinas_metrics, scale_invariant_metrics])
def test_per_slice_metrics_name_an_empty_slice(score: object) -> None:
    assert callable(score)
    target, prediction = square_pair()
    target[1] = 0
    with pytest.raises(ValueError, match=r"^target slice 1 is zero everywhere; per-slice metrics divide"):
        score(target, prediction)


def test_scale_invariant_refuses_an_empty_prediction() -> None:
    target, _ = square_pair()
    with pytest.raises(ValueError, match="the prediction is zero everywhere"):
        scale_invariant_metrics(target, 0 * target)


def test_vif_refuses_small_and_constant_images() -> None:
    with pytest.raises(ValueError, match="at least 41 x 41 pixels"):
        vif(np.ones((40, 64)), np.ones((40, 64)))
    with pytest.raises(ValueError, match="constant target"):
        vif(np.ones((41, 41)), np.zeros((41, 41)))
    assert vif(np.eye(41), np.eye(41)) == pytest.approx(1.0, abs=1e-6)
