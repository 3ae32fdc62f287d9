"""How good generated images are: their distance from real ones, as a CNN that was trained on such images sees them,
the classes it takes them for, and whether they are copies.

Every figure depends on how many images it is computed from, on the CNN, and on how alike real images are among
themselves. So each stands beside the figure that real images get in the place of the samples.

Shapes: N points (M others), D features, C H W image, K classes or nearest neighbors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raynn.encodings import Label, shown
from raynn.errors import DataError, RunError, did_you_mean
from raynn.networks.cnn import Cnn
from raynn.run import Run

Array = NDArray[Any]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Images = NDArray[np.uint8]

NEIGHBORS = 3  # k of precision and recall, as in Kynkäänniemi et al. 2019
COPY_QUANTILE = 0.01  # the share of real images that lie so near to a training image that they count as copies
BLOCK_NUMBERS = 2**24  # distances held at a time: 128 MB in float64
BATCH_ROWS = 256  # images the CNN sees at a time


def frechet_distance(features_a_ND: Array, features_b_ND: Array) -> float:
    """Squared Fréchet distance of the Gaussians with the means and covariances of two sets of points (Heusel et al.
    2017, eq. 6): |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), covariances over N - 1.

    It is biased upwards, more so for small sets: compare only distances between sets of the same sizes.

    Raises:
        DataError: fewer than two points, different widths, or features that are not finite.
    """
    a_ND, b_ND = _points(features_a_ND, features_b_ND, at_least=2)
    mean_a_D, mean_b_D = a_ND.mean(0), b_ND.mean(0)
    root_a_MD, root_b_MD = _covariance_root(a_ND - mean_a_D), _covariance_root(b_ND - mean_b_D)
    # The eigenvalues of C_a C_b = Ra' Ra Rb' Rb are the squared singular values of Ra Rb'. No product is formed whose
    # root must be taken, so that nothing is lost where covariances are singular, as they are for N <= D.
    cross = np.linalg.svd(root_a_MD @ root_b_MD.T, compute_uv=False).sum()
    traces = (root_a_MD**2).sum() + (root_b_MD**2).sum()
    return max(0.0, float(((mean_a_D - mean_b_D) ** 2).sum() + traces - 2 * cross))


def _covariance_root(centered_ND: Floats) -> Floats:
    """R [min(N, D), D] with R' R = the covariance."""
    return np.linalg.qr(centered_ND).R / math.sqrt(len(centered_ND) - 1)


def precision_recall(real_ND: Array, fake_MD: Array, k: int = NEIGHBORS) -> tuple[float, float]:
    """The share of fake points in the manifold of the real ones, and of real points in that of the fake ones
    (Kynkäänniemi et al. 2019, eq. 1 and 2). A manifold is the union of balls around its points, each as wide as the
    distance to the k-th nearest other point.

    Raises:
        DataError: no more than k points, different widths, or features that are not finite.
    """
    real_ND, fake_MD = _points(real_ND, fake_MD, at_least=k + 1)
    real, fake = torch.from_numpy(real_ND), torch.from_numpy(fake_MD)
    real_radius_N, fake_radius_M = _radius(real, k), _radius(fake, k)
    fake_inside_M = torch.zeros(len(fake), dtype=torch.bool)
    real_inside_N = torch.zeros(len(real), dtype=torch.bool)
    for rows in _blocks(len(fake), len(real)):
        distance_BN = _distances(fake[rows], real)
        fake_inside_M[rows] = (distance_BN <= real_radius_N).any(1)
        real_inside_N |= (distance_BN <= fake_radius_M[rows, None]).any(0)
    return float(fake_inside_M.double().mean()), float(real_inside_N.double().mean())


def _radius(points: Tensor, k: int) -> Tensor:
    """Distance [N] of each point to its k-th nearest other one; at distance 0, each is among its own k + 1 nearest."""
    blocks = _blocks(len(points), len(points))
    return torch.cat([_distances(points[rows], points).topk(k + 1, largest=False).values[:, k] for rows in blocks])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances [N, M], from differences rather than products: 0 between equal points, and the same bits for a pair in
    any block and order, so that a point on the rim of a ball is inside.
    """
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def nearest_neighbors(points_ND: Array, others_MD: Array, k: int = 1) -> tuple[Floats, Indices]:
    """Euclidean distances [N, K] of each point to its nearest others, ascending, and which these are [N, K].

    Neighbors are found by float32 products, several times as fast as differences: of two whose distances agree to
    about 1e-3 of the points' norms, either may be named. The distances are those of the neighbors named, to rounding.
    """
    points, others = (torch.from_numpy(_copied(each, np.float32)) for each in (points_ND, others_MD))
    square_M = others.square().sum(1)
    distances, indices = [], []
    for rows in _blocks(len(points), max(len(others), k * points.shape[1])):
        # |p - o|^2 less |p|^2, which is the same for all others
        near_BK = torch.addmm(square_M, points[rows], others.T, alpha=-2).topk(k, largest=False).indices
        difference_BKD = points[rows, None].double() - others[near_BK].double()
        distance_BK, order_BK = torch.linalg.vector_norm(difference_BKD, dim=2).sort(dim=1, stable=True)
        distances.append(distance_BK)
        indices.append(near_BK.gather(1, order_BK))
    return torch.cat(distances).numpy(), torch.cat(indices).numpy()


def copied_share(distance_N: Array, held_out_distance_M: Array) -> float:
    """The share of samples that lie at least as near to a training image as the nearest hundredth of real images do
    that are not among the training images. Without copies it is about 0.01, or less where samples are blurred.
    """
    threshold = np.quantile(held_out_distance_M, COPY_QUANTILE, method="lower")
    return float(np.mean(distance_N <= threshold))


def class_agreement(logits_NK: Array, asked_N: Array) -> float:
    """The share of samples that are taken for the class that was asked for, an index 0 .. K - 1."""
    return float(np.mean(logits_NK.argmax(1) == asked_N))


@torch.no_grad()
def features(model: Cnn, image_NCHW: Images, batch_rows: int = BATCH_ROWS) -> tuple[Array, Array]:
    """What the last layer of a trained CNN reads [N, D], and the logits it makes of it [N, K], both float32."""
    model.eval()
    device = next(model.parameters()).device
    features_ND, logits_NK = [], []
    for start in range(0, len(image_NCHW), batch_rows):
        image_BCHW = torch.from_numpy(_copied(image_NCHW[start : start + batch_rows], np.uint8)).to(device)
        features_BD = model.features({"image": image_BCHW})
        features_ND.append(features_BD.cpu())
        logits_NK.append(model.head(features_BD).cpu())
    return torch.cat(features_ND).numpy(), torch.cat(logits_NK).numpy()


def image_quality(
    judge: Run,
    samples_NCHW: Images,
    half_a_NCHW: Images,
    half_b_NCHW: Images,
    training_NCHW: Images,
    asked: Sequence[Label] | None = None,
    pairs: int = 16,
) -> dict[str, Any]:
    """What a trained CNN says of generated images: plain numbers, ready for JSON.

    Args:
        judge: an opened run of a CNN that classifies such images.
        samples_NCHW: generated images, 0..255; as many as half B holds, because every figure depends on the number.
        half_a_NCHW: real images that neither the generator nor the judge was trained on.
        half_b_NCHW: as many others of them.
        training_NCHW: the images that the generator was trained on.
        asked: for each sample the label of the class that was asked for; None: none was.
        pairs: how many samples are named beside the training image that they resemble most.

    Returns:
        Of the samples, and under the same name and `_real` of half B in their place: `frechet_distance`, `precision`
        and `recall`, all against half A; `copies_pixels`, `copies_relative`, `copies_features`: the `copied_share` by
        each of the distances of `_nearness`, with half A as the real images.
        Of the samples alone: `class_agreement`, where classes were asked for; `nearest_pixels` and `nearest_features`:
        the `pairs` samples nearest to a training image, nearest first: the numbers of both, and their distance.

    Raises:
        RunError: the judge is no CNN that tells classes by an image alone.
        DataError: images of another shape or type than the judge takes, too few of them, or a label unknown to it.
    """
    model = _judging(judge)
    images = {"samples": samples_NCHW, "half_a": half_a_NCHW, "half_b": half_b_NCHW, "training": training_NCHW}
    for name, image_NCHW in images.items():
        _check_images(name, image_NCHW, judge)
    asked_N = None if asked is None else _class_indices(asked, len(samples_NCHW), judge)
    pixels = {name: image_NCHW.reshape(len(image_NCHW), -1) for name, image_NCHW in images.items()}
    judged = {name: features(model, image_NCHW) for name, image_NCHW in images.items()}
    seen = {name: features_ND for name, (features_ND, _) in judged.items()}
    near = {
        name: _nearness(pixels[name], pixels["training"], seen[name], seen["training"])
        for name in ("samples", "half_a", "half_b")
    }
    quality: dict[str, Any] = {}
    for name, suffix in (("samples", ""), ("half_b", "_real")):
        precision, recall = precision_recall(seen["half_a"], seen[name])
        quality[f"frechet_distance{suffix}"] = frechet_distance(seen["half_a"], seen[name])
        quality[f"precision{suffix}"], quality[f"recall{suffix}"] = precision, recall
        for space, (distance_N, _) in near[name].items():
            quality[f"copies_{space}{suffix}"] = copied_share(distance_N, near["half_a"][space][0])
    if asked_N is not None:
        quality["class_agreement"] = class_agreement(judged["samples"][1], asked_N)
    for space in ("pixels", "features"):
        quality[f"nearest_{space}"] = _nearest_pairs(*near["samples"][space], pairs)
    return quality


def _nearness(
    pixels_ND: Array, training_pixels_MD: Array, seen_ND: Array, training_seen_MD: Array
) -> dict[str, tuple[Floats, Indices]]:
    """How far each image is from the training image nearest to it [N], and which that is [N].

    `pixels`: Euclidean, in gray levels; `features`: Euclidean, as the judge sees them; `relative`: distance in pixels
    over that to the second nearest (Gu et al. 2023), which shows noisy and blurred copies that are no nearer than real
    images come, but not those of an image that the training set holds twice.
    """
    distance_N2, index_N2 = nearest_neighbors(pixels_ND, training_pixels_MD, k=2)
    seen_N1, seen_index_N1 = nearest_neighbors(seen_ND, training_seen_MD)
    relative_N = distance_N2[:, 0] / np.maximum(distance_N2[:, 1], np.finfo(np.float64).tiny)
    return {
        "pixels": (distance_N2[:, 0], index_N2[:, 0]),
        "relative": (relative_N, index_N2[:, 0]),
        "features": (seen_N1[:, 0], seen_index_N1[:, 0]),
    }


def _nearest_pairs(distance_N: Floats, index_N: Indices, pairs: int) -> list[dict[str, Any]]:
    """The samples nearest to a training image, nearest first."""
    return [
        {"sample": int(n), "training": int(index_N[n]), "distance": float(distance_N[n])}
        for n in distance_N.argsort(kind="stable")[:pairs]
    ]


def _judging(judge: Run) -> Cnn:
    """The judge's network, if it can judge images."""
    model, inputs = judge.model, judge.preprocessing.input_spec
    if not isinstance(model, Cnn):
        problem = f"network.kind = {judge.job.network.kind!r}, and must be 'cnn'"
    elif inputs.image_CHW is None:
        problem = "sequences for input, and must take images"
    elif inputs.num_numeric or inputs.cardinalities:
        problem = "table columns beside the image, which generated images lack; set data.features to the image alone"
    elif inputs.task != "classification":
        problem = f"task = {inputs.task!r}, and must be 'classification'"
    else:
        return model
    raise RunError(
        f"{judge.folder} cannot judge images: it has {problem}; name the run of a cnn that tells the classes of the "
        "images that the generator was trained on"
    )


def _check_images(name: str, image_NCHW: Array, judge: Run) -> None:
    """DataError where the judge cannot take them, or where they are too few for any figure."""
    image_CHW = judge.preprocessing.input_spec.image_CHW
    held = f"{name} holds {image_NCHW.dtype} of shape {image_NCHW.shape}"
    if image_NCHW.dtype != np.uint8 or image_NCHW.shape[1:] != image_CHW:
        raise DataError(
            f"{held}, and the judge {judge.folder} takes uint8 of shape {('N', *(image_CHW or ()))}; "
            "train a judge on images like those that the generator was trained on"
        )
    if len(image_NCHW) <= NEIGHBORS:
        raise DataError(f"{held}, and quality takes more than {NEIGHBORS} images; give some hundreds at least")


def _class_indices(asked: Sequence[Label], num_samples: int, judge: Run) -> Indices:
    """The asked labels as the judge's class indices [N]."""
    labels = judge.preprocessing.input_spec.classes or ()
    if len(asked) != num_samples:
        raise DataError(f"{len(asked)} classes are asked for and there are {num_samples} samples; give one a sample")
    index = {label: k for k, label in enumerate(labels)}
    if unknown := [label for label in asked if label not in index]:
        raise DataError(
            f"class {unknown[0]!r} is asked for, and the judge {judge.folder} knows {shown(labels)}."
            f"{did_you_mean(str(unknown[0]), map(str, labels))} Train the judge on the generator's classes"
        )
    return np.array([index[label] for label in asked])


def _points(a: Array, b: Array, at_least: int) -> tuple[Floats, Floats]:
    """Both in float64. DataError where no figure could be computed of them."""
    a_ND, b_MD = _copied(a, np.float64), _copied(b, np.float64)
    if a_ND.ndim != 2 or b_MD.ndim != 2 or a_ND.shape[1] != b_MD.shape[1]:
        raise DataError(f"features of shapes {a_ND.shape} and {b_MD.shape} must be [N, D] and [M, D]; use one network")
    if min(len(a_ND), len(b_MD)) < at_least:
        raise DataError(f"sets of {len(a_ND)} and {len(b_MD)} points must have {at_least} or more each; give more")
    if not (np.isfinite(a_ND).all() and np.isfinite(b_MD).all()):
        raise DataError("some features are infinite or NaN; all must be finite: look for a network that diverged")
    return a_ND, b_MD


def _copied(x: Array, dtype: type[np.generic]) -> Array:
    """A copy that torch takes: it takes no reversed axes, and warns of arrays that are read-only, as Arrow's are."""
    return np.array(x, dtype, order="C")


def _blocks(num_rows: int, numbers_per_row: int) -> Iterator[slice]:
    """Slices of the rows whose numbers fit a block."""
    step = max(1, BLOCK_NUMBERS // numbers_per_row)
    for start in range(0, num_rows, step):
        yield slice(start, start + step)
