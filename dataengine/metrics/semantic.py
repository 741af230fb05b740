"""Semantic segmentation: one confusion matrix of pixels, and the four numbers that are read from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from dataengine.errors import ReasonError, UserError

IGNORE = 255


class ClassScores(NamedTuple):
    """IoU and accuracy (recall) of one class, in [0, 1]; None where the ground truth has no pixel of it."""

    iou: float | None
    acc: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticScores:
    """Scores in [0, 1]; None where no pixel of ground truth was counted.

    miou, macc: means over the classes that the ground truth has. fwiou: mean of IoU weighted by their pixels.
    pacc: share of pixels that are right. num_pixels: that were counted.
    """

    miou: float | None
    fwiou: float | None
    macc: float | None
    pacc: float | None
    per_class: dict[int, ClassScores]
    num_pixels: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for a json file; classes become texts."""
        per_class = {str(label): scores._asdict() for label, scores in self.per_class.items()}
        return {**asdict(self), "per_class": per_class}


class Confusion:
    """Pixels by predicted and true class, added up over pictures; the parts of a set merge to the whole.

    matrix: (num_classes + 1, num_classes) int64; rows are predictions, the last one pixels without any, and columns
    the ground truth.
    """

    def __init__(self, num_classes: int, ignore: int = IGNORE) -> None:
        """
        Args:
            num_classes: labels are 0 … num_classes - 1.
            ignore: of ground truth: a pixel that is not counted; of a prediction: a pixel without a class.
        Raises:
            UserError: `ignore` is the label of a class.
        """
        if num_classes < 1 or 0 <= ignore < num_classes:
            raise UserError(f"{num_classes} classes with {ignore} as the label to ignore; it must lie outside of them")
        self.num_classes = num_classes
        self.ignore = ignore
        self.matrix = np.zeros((num_classes + 1, num_classes), np.int64)

    def add(self, truth: np.ndarray, found: np.ndarray) -> None:
        """Count a picture.

        Args:
            truth, found: (H, W) integers, labels.
        Raises:
            ReasonError: `labels_invalid` (no such map), `labels_size` (of different shapes), `unknown_label`.
        """
        truth, found = np.asarray(truth), np.asarray(found)
        for labels, what in ((truth, "ground truth"), (found, "prediction")):
            if labels.ndim != 2 or labels.dtype.kind not in "iu":
                raise ReasonError(
                    "labels_invalid", f"{what}: a label map is (H, W) integers, not {labels.shape} {labels.dtype}"
                )
        if truth.shape != found.shape:
            raise ReasonError(
                "labels_size",
                f"the prediction's map is {found.shape[1]} x {found.shape[0]} px; "
                f"the ground truth's is {truth.shape[1]} x {truth.shape[0]}",
            )
        rows, columns = self._places(found, "prediction"), self._places(truth, "ground truth")
        side = self.num_classes + 1
        counts = np.bincount((rows * side + columns).ravel(), minlength=side * side).reshape(side, side)
        self.matrix += counts[:, :-1]

    def merge(self, other: Confusion) -> None:
        """Count all pictures of another one.

        Raises:
            UserError: its classes or the label to ignore differ.
        """
        if (self.num_classes, self.ignore) != (other.num_classes, other.ignore):
            raise UserError("matrices of different classes cannot be merged")
        self.matrix += other.matrix

    def result(self) -> SemanticScores:
        """Of class c, with T pixels of ground truth, P predicted where ground truth counts, and TP both.

        IoU = TP / (T + P - TP), accuracy = TP / T; mIoU and mAcc are their means over classes with T > 0,
        fwIoU = Σ T IoU / Σ T, pAcc = Σ TP / Σ T (Long et al., CVPR 2015, §5; which classes count, as in
        X-SAM's semantic evaluator).
        """
        real, guessed, right = self.matrix.sum(axis=0), self.matrix[:-1].sum(axis=1), np.diagonal(self.matrix)
        total = int(real.sum())
        per_class = {label: ClassScores(None, None) for label in range(self.num_classes)}
        present = np.flatnonzero(real)
        iou = right[present] / (real + guessed - right)[present]
        acc = right[present] / real[present]
        for label, *scores in zip(present.tolist(), iou.tolist(), acc.tolist(), strict=True):
            per_class[label] = ClassScores(*scores)
        return SemanticScores(
            miou=float(iou.mean()) if total else None,
            fwiou=float((real[present] * iou).sum() / total) if total else None,
            macc=float(acc.mean()) if total else None,
            pacc=int(right.sum()) / total if total else None,
            per_class=per_class,
            num_pixels=total,
        )

    def _places(self, labels: np.ndarray, what: str) -> np.ndarray:
        """Rows or columns as int64; the last for the label to ignore."""
        ignored = labels == self.ignore
        wrong = ~ignored & ((labels < 0) | (labels >= self.num_classes))
        if wrong.any():
            y, x = np.argwhere(wrong)[0].tolist()
            raise ReasonError(
                "unknown_label",
                f"{what}: label {labels[y, x]} at x {x}, y {y}; 0 to {self.num_classes - 1} or {self.ignore} is needed",
            )
        return np.where(ignored, self.num_classes, labels).astype(np.int64)
