"""Quality of generated images: distances against closed forms and brute force, planted copies, and refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import raynn.image_quality
from raynn.errors import DataError, RunError
from raynn.image_quality import (
    _distances,
    class_agreement,
    copied_share,
    features,
    frechet_distance,
    image_quality,
    nearest_neighbors,
    precision_recall,
)
from raynn.networks.cnn import Cnn, CnnSettings, build
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings
from raynn.run import Run, open_run

Array = NDArray[Any]


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows a block, and the last one short."""
    monkeypatch.setattr(raynn.image_quality, "BLOCK_NUMBERS", 250)


def with_moments(num_rows: int, mean_D: Array, root_DD: Array, seed: int = 0) -> Array:
    """Points [N, D] whose sample mean is `mean`, and whose sample covariance is `root' root`."""
    x_ND = np.random.default_rng(seed).normal(size=(num_rows, len(mean_D)))
    x_ND -= x_ND.mean(0)
    left_ND, _, right_DD = np.linalg.svd(x_ND, full_matrices=False)
    return left_ND @ right_DD @ root_DD * np.sqrt(num_rows - 1) + mean_D


def positive(size: int, seed: int) -> Array:
    """A symmetric matrix [D, D] with eigenvalues of .25 to 2.25 and no zeros."""
    random = np.random.default_rng(seed)
    rotation_DD = np.linalg.qr(random.normal(size=(size, size))).Q
    return (rotation_DD * random.uniform(0.25, 2.25, size)) @ rotation_DD.T


def test_frechet_distance_of_gaussians_along_the_axes() -> None:
    std_a_D, std_b_D = np.array([1.0, 2.0, 0.5, 0.0]), np.array([3.0, 0.0, 0.5, 0.1])
    mean_a_D, mean_b_D = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.5, 1.0, 0.0, 3.0])
    a_ND, b_MD = with_moments(40, mean_a_D, np.diag(std_a_D)), with_moments(70, mean_b_D, np.diag(std_b_D), seed=1)
    expected = ((mean_a_D - mean_b_D) ** 2).sum() + ((std_a_D - std_b_D) ** 2).sum()
    assert frechet_distance(a_ND, b_MD) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b_MD, a_ND) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_two_dimensions() -> None:
    """For 2 x 2, tr(M^(1/2)) = (tr M + 2 det(M)^(1/2))^(1/2); these covariances do not commute."""
    root_a_22, root_b_22 = np.array([[1.0, 0.8], [0.0, 0.5]]), np.array([[0.3, -1.0], [0.7, 0.2]])
    cov_a_22, cov_b_22 = root_a_22.T @ root_a_22, root_b_22.T @ root_b_22
    product_22 = cov_a_22 @ cov_b_22
    cross = np.sqrt(np.trace(product_22) + 2 * np.sqrt(np.linalg.det(product_22)))
    a_ND, b_MD = with_moments(30, np.zeros(2), root_a_22), with_moments(50, np.array([3.0, 4.0]), root_b_22, seed=1)
    expected = 25 + np.trace(cov_a_22) + np.trace(cov_b_22) - 2 * cross
    assert frechet_distance(a_ND, b_MD) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("num_rows", "size"), [(60, 8), (9, 50)], ids=["full rank", "fewer points than features"])
def test_frechet_distance_to_a_stretched_copy(num_rows: int, size: int) -> None:
    """A symmetric positive map S moves points optimally (Brenier 1991): |(1 - S) m|^2 + tr((1 - S) C (1 - S)).

    With fewer points than features both covariances are singular, and in different directions.
    """
    a_ND = np.random.default_rng(0).normal(3.0, 1.0, (num_rows, size))
    shift_DD = np.eye(size) - positive(size, 1)
    expected = ((shift_DD @ a_ND.mean(0)) ** 2).sum() + np.trace(shift_DD @ np.cov(a_ND.T) @ shift_DD)
    assert frechet_distance(a_ND, a_ND - a_ND @ shift_DD) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_where_nothing_overlaps() -> None:
    """Covariances in orthogonal directions share nothing: the sum of their traces, here after a rotation."""
    rotation_DD = np.linalg.qr(np.random.default_rng(2).normal(size=(40, 40))).Q
    a_ND, b_MD = np.zeros((6, 40)), np.zeros((7, 40))
    a_ND[:, :20], b_MD[:, 20:] = np.random.default_rng(0).normal(size=(6, 20)), np.eye(7, 20)
    expected = a_ND.var(0, ddof=1).sum() + b_MD.var(0, ddof=1).sum() + ((a_ND.mean(0) - b_MD.mean(0)) ** 2).sum()
    assert frechet_distance(a_ND @ rotation_DD, b_MD @ rotation_DD) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_rows", [5, 200])
def test_frechet_distance_is_zero_between_equals_and_the_same_after_a_rotation(num_rows: int) -> None:
    random = np.random.default_rng(0)
    a_ND, b_MD = random.normal(size=(num_rows, 30)).astype(np.float32), random.gamma(1.0, size=(150, 30))
    for scale in (1.0, 1.1, 1.2, 1.3):  # to rounding, which lies below 0 as often as above
        assert 0 <= frechet_distance(scale * a_ND, scale * a_ND[::-1]) < 1e-12
    rotation_DD = np.linalg.qr(random.normal(size=(30, 30))).Q
    there = frechet_distance(a_ND, b_MD)
    assert frechet_distance(a_ND @ rotation_DD + 5, b_MD @ rotation_DD + 5) == pytest.approx(there, rel=1e-12)


def test_precision_and_recall_by_hand() -> None:
    """k = 1. Real 0 1 2 4 have radii 1 1 1 2; fake -1 5 6.5 20 have 6 1.5 1.5 13.5."""
    real_N1, fake_M1 = np.array([[0.0], [1.0], [2.0], [4.0]]), np.array([[-1.0], [5.0], [6.5], [20.0]])
    assert precision_recall(real_N1, fake_M1, k=1) == (0.5, 1.0)  # -1 lies on the rim of 0's ball
    assert precision_recall(fake_M1, real_N1, k=1) == (1.0, 0.5)
    assert precision_recall(real_N1, fake_M1 + 100, k=1) == (0.0, 0.0)


def brute_force(real_ND: Array, fake_MD: Array, k: int) -> float:
    """Eq. 1 and 2 of Kynkäänniemi et al., point by point."""
    inside = []
    for fake_D in fake_MD:
        hits = False
        for real_D in real_ND:
            radius = sorted(np.sqrt(((real_D - other_D) ** 2).sum()) for other_D in real_ND)[k]
            hits = hits or np.sqrt(((fake_D - real_D) ** 2).sum()) <= radius
        inside.append(hits)
    return float(np.mean(inside))


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_brute_force(k: int) -> None:
    random = np.random.default_rng(k)
    real_ND, fake_MD = random.normal(size=(37, 3)), random.normal(1.2, 1.0, size=(23, 3))
    found = precision_recall(real_ND, fake_MD, k)
    assert found == (brute_force(real_ND, fake_MD, k), brute_force(fake_MD, real_ND, k))
    assert all(0.1 < share < 1.0 for share in found)


@pytest.mark.usefixtures("_small_blocks")
def test_a_set_lies_in_its_own_manifold_even_where_points_coincide() -> None:
    """The radius of a point that is there k + 1 times is 0, and the distance of its like must be no more."""
    x_ND = np.random.default_rng(0).normal(100.0, 1.0, (40, 16))
    x_ND[10:30] = x_ND[3]
    assert precision_recall(x_ND, x_ND[::-1]) == (1.0, 1.0)
    assert precision_recall(x_ND[10:30], x_ND[11:20]) == (1.0, 1.0)


def test_distances_do_not_depend_on_blocks_and_order() -> None:
    """So that the k-th nearest neighbor, on the rim, is inside; products of matrices would not keep that."""
    a, b = torch.from_numpy(np.random.default_rng(0).normal(100.0, 1.0, (2, 90, 33)))
    whole = _distances(a, b)
    assert torch.equal(_distances(b, a).T, whole)
    assert torch.equal(torch.cat([_distances(part, b) for part in a.split(7)]), whole)
    assert not _distances(a, a).diagonal().any()


@pytest.mark.usefixtures("_small_blocks")
def test_nearest_neighbors_by_brute_force() -> None:
    random = np.random.default_rng(0)
    points_ND, others_MD = random.integers(0, 256, (2, 61, 12)).astype(np.uint8)
    points_ND[7] = others_MD[5]
    distance_NK, index_NK = nearest_neighbors(points_ND, others_MD, k=2)
    all_NM = np.sqrt(((points_ND[:, None].astype(float) - others_MD[None].astype(float)) ** 2).sum(-1))
    np.testing.assert_array_equal(index_NK, all_NM.argsort(1)[:, :2])
    np.testing.assert_allclose(distance_NK, np.sort(all_NM, 1)[:, :2], rtol=1e-14)
    assert (index_NK[7, 0], distance_NK[7, 0]) == (5, 0.0)


def test_the_share_of_copies() -> None:
    held_out_M = np.arange(1000.0)  # the nearest hundredth: 0 .. 9
    assert copied_share(held_out_M, held_out_M) == 0.01
    assert copied_share(np.array([0.0, 9.0, 9.5, 500.0]), held_out_M) == 0.5
    assert copied_share(np.zeros(3), np.repeat([0.0, 1.0], 50)) == 1.0  # data where real images, too, are there twice


def test_class_agreement() -> None:
    logits_NK = np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [-1.0, -2.0]])
    assert class_agreement(logits_NK, np.array([1, 0, 0, 0])) == 0.75


@pytest.mark.parametrize("options", [{}, {"head_hidden": ()}, {"head_pooling": "mean", "head_hidden": (5, 7)}])
def test_features_are_what_the_last_layer_reads(options: dict[str, Any]) -> None:
    inputs = InputSpec(image_CHW=(2, 8, 6), image_mean=(100.0, 120.0), image_std=(50.0, 70.0), num_outputs=5)
    torch.manual_seed(0)
    model = build(CnnSettings(kind="cnn", channels=(6, 8), **options), inputs, RegularizationSettings(dropout=0.5))
    assert isinstance(model, Cnn)
    image_NCHW = np.random.default_rng(0).integers(0, 256, (9, 2, 8, 6)).astype(np.uint8)
    features_ND, logits_NK = features(model.train(), image_NCHW, batch_rows=4)
    with torch.no_grad():
        whole_NK = model.eval()({"image": torch.from_numpy(image_NCHW)})
        from_features_NK = model.head(torch.from_numpy(features_ND))
    np.testing.assert_allclose(logits_NK, whole_NK, atol=1e-5)
    np.testing.assert_allclose(logits_NK, from_features_NK, atol=1e-5)
    again = features(model, image_NCHW, batch_rows=4)
    np.testing.assert_array_equal(again[0], features_ND)
    np.testing.assert_array_equal(again[1], logits_NK)


def pets(num_images: int, seed: int, lightest: int = 128) -> Array:
    """Dark and light pictures in turn, as the judge of the fixture knows them: cats and dogs."""
    image_NCHW = np.random.default_rng(seed).integers(0, lightest, (num_images, 3, 8, 8)).astype(np.uint8)
    image_NCHW[1::2] += 128
    return image_NCHW


@dataclass(frozen=True)
class Gallery:
    """A judge, and the arguments of `image_quality`."""

    judge: Run
    samples: Array
    half_a: Array
    half_b: Array
    training: Array
    asked: tuple[Any, ...] | None = None

    def quality(self) -> dict[str, Any]:
        return image_quality(self.judge, self.samples, self.half_a, self.half_b, self.training, self.asked, pairs=30)


@pytest.fixture
def gallery(image_classifier: Path) -> Gallery:
    """Samples as good as real ones."""
    real_NCHW = pets(900, seed=0)
    judge = open_run(image_classifier)
    return Gallery(judge, pets(200, 1), real_NCHW[:200], real_NCHW[200:400], real_NCHW[400:], ("cat", "dog") * 100)


def test_samples_as_good_as_real_images(gallery: Gallery) -> None:
    quality = gallery.quality()
    assert quality == json.loads(json.dumps(quality))
    figures = {name: value for name, value in quality.items() if isinstance(value, float)}
    of_both = ["frechet_distance", "precision", "recall", "copies_pixels", "copies_relative", "copies_features"]
    assert sorted(figures) == sorted([*of_both, *(f"{name}_real" for name in of_both), "class_agreement"])
    assert quality["frechet_distance"] < 2 * quality["frechet_distance_real"]
    assert quality["class_agreement"] == 1.0
    for name in of_both[1:]:
        assert quality[name] == pytest.approx(quality[f"{name}_real"], abs=0.1)
    exchanged = replace(gallery, samples=gallery.half_b, half_b=gallery.samples).quality()
    for name in of_both:
        assert exchanged[name] == quality[f"{name}_real"]
        assert exchanged[f"{name}_real"] == quality[name]


def test_copies_show(gallery: Gallery) -> None:
    """Thirty samples in two hundred are training images, ten of them with noise."""
    samples_NCHW = gallery.samples.copy()
    samples_NCHW[50:80] = gallery.training[100:130]
    samples_NCHW[50:60] ^= 1
    quality = replace(gallery, samples=samples_NCHW).quality()
    clean = gallery.quality()
    for name in ("copies_pixels", "copies_relative"):
        assert clean[name] < 0.05
        assert quality[name] == pytest.approx(clean[name] + 0.15, abs=0.02)
    assert quality["copies_features"] >= clean["copies_features"] + 0.05
    pairs = quality["nearest_pixels"]
    assert {(pair["sample"], pair["training"]) for pair in pairs} == {(50 + i, 100 + i) for i in range(30)}
    assert [pair["distance"] for pair in pairs] == [0.0] * 20 + [pytest.approx(np.sqrt(192))] * 10
    assert [pair["distance"] for pair in quality["nearest_features"][:20]] == pytest.approx([0.0] * 20, abs=1e-5)


def test_noisy_copies_show_where_real_images_lie_nearer(gallery: Gallery) -> None:
    """Flat images are alike without being copies: they are nearer to one another than the noisy copies to theirs, but
    about as near to many.
    """
    random = np.random.default_rng(3)
    half_a_NCHW, half_b_NCHW, training_NCHW = gallery.half_a.copy(), gallery.half_b.copy(), gallery.training.copy()
    for image_NCHW in (half_a_NCHW, half_b_NCHW, training_NCHW):
        image_NCHW[:10] = random.integers(0, 4, (10, 3, 8, 8))
    samples_NCHW = gallery.samples.copy()
    samples_NCHW[50:80] = training_NCHW[100:130] ^ random.integers(0, 16, (30, 3, 8, 8), dtype=np.uint8)
    changes = {"half_a": half_a_NCHW, "half_b": half_b_NCHW, "training": training_NCHW, "samples": samples_NCHW}
    quality = replace(gallery, **changes).quality()
    assert quality["copies_pixels"] == 0.0
    assert quality["copies_relative"] == pytest.approx(0.15, abs=0.02)
    assert quality["copies_relative_real"] < 0.03


def test_the_figures_are_those_of_features(gallery: Gallery) -> None:
    samples_NCHW = pets(120, 5, lightest=60)[::-1]
    quality = replace(gallery, samples=samples_NCHW, asked=None).quality()
    model = gallery.judge.model
    assert isinstance(model, Cnn)
    seen_ND, real_ND, training_ND = (
        features(model, image_NCHW)[0] for image_NCHW in (samples_NCHW, gallery.half_a, gallery.training)
    )
    assert quality["frechet_distance"] == frechet_distance(real_ND, seen_ND)
    precision, recall = precision_recall(real_ND, seen_ND)
    assert (quality["precision"], quality["recall"]) == (precision, recall)
    assert precision != recall
    distance_N1, index_N1 = nearest_neighbors(seen_ND, training_ND)
    pairs = quality["nearest_features"]
    for pair in pairs:
        assert pair["training"] == index_N1[pair["sample"], 0]
    assert [pair["distance"] for pair in pairs] == sorted(distance_N1[:, 0])[:30]


def test_bad_samples_show(gallery: Gallery) -> None:
    """Of one class only, and flat: far away, less like real ones, and less of what is real among them."""
    quality = replace(gallery, samples=pets(400, 1, lightest=20)[::2]).quality()
    assert quality["frechet_distance"] > 20 * quality["frechet_distance_real"]
    assert quality["recall"] < quality["recall_real"] / 2
    assert quality["class_agreement"] == 0.5


def test_a_second_look_says_the_same_of_views_that_are_reversed_or_read_only(gallery: Gallery) -> None:
    samples_NCHW, training_NCHW = gallery.samples[::-1].copy()[::-1], gallery.training.copy()
    training_NCHW.setflags(write=False)
    assert replace(gallery, samples=samples_NCHW, training=training_NCHW).quality() == gallery.quality()


def test_no_class_was_asked_for(gallery: Gallery) -> None:
    assert "class_agreement" not in replace(gallery, asked=None).quality()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"samples": pets(8, 0)[:, :1]},
            r"samples holds uint8 of shape \(8, 1, 8, 8\), and the judge .*pets takes uint8",
        ),
        (
            {"half_a": pets(8, 0) / 255},
            r"half_a holds float64 of shape .* takes uint8 of shape \('N', 3, 8, 8\); train",
        ),
        (
            {"training": pets(3, 0)},
            r"training holds uint8 of shape \(3, 3, 8, 8\), and quality takes more than 3 images",
        ),
        ({"asked": ("cat",)}, "1 classes are asked for and there are 200 samples; give one a sample"),
        (
            {"asked": ("cat", "dogs") * 100},
            r"class 'dogs' is asked for, and the judge .* knows 'cat', 'dog'\. Did you mean 'dog'\?",
        ),
    ],
)
def test_images_and_classes_that_are_refused(gallery: Gallery, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        replace(gallery, **changes).quality()


def test_a_judge_must_see_images_alone_and_tell_classes(gallery: Gallery, classifier: Path) -> None:
    other = open_run(classifier)
    pictures, table = gallery.judge.preprocessing, other.preprocessing
    beside = replace(table, features=table.features + pictures.features, encodings=table.encodings + pictures.encodings)
    for judge, says in (
        (other, r"network\.kind = 'feedforward', and must be 'cnn'"),
        (replace(gallery.judge, preprocessing=table), "sequences for input, and must take images"),
        (replace(gallery.judge, preprocessing=beside), "table columns beside the image, .* to the image alone"),
        (replace(gallery.judge, preprocessing=replace(pictures, task="regression")), "task = 'regression', and must"),
    ):
        with pytest.raises(RunError, match=f"cannot judge images: it has {says}.*; name the run of a cnn that tells"):
            replace(gallery, judge=judge).quality()


@pytest.mark.parametrize(
    ("a_ND", "b_MD", "says"),
    [
        (np.zeros((5, 3)), np.zeros((5, 4)), r"features of shapes \(5, 3\) and \(5, 4\) must be \[N, D\] and \[M, D\]"),
        (np.zeros((5, 3)), np.zeros((1, 3)), "sets of 5 and 1 points must have [24] or more each"),
        (np.zeros((5, 3)), np.full((5, 3), np.nan), "some features are infinite or NaN; all must be finite"),
    ],
)
def test_features_of_which_nothing_can_be_computed(a_ND: Array, b_MD: Array, says: str) -> None:
    for measure in (frechet_distance, precision_recall):
        with pytest.raises(DataError, match=says):
            measure(a_ND, b_MD)
