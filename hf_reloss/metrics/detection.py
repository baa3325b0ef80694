"""Average precision of boxes: pycocotools finds which object each box is, once an image; groups are then added up."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from .base import Metric, add_up, need, on_host, same_length

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Those of COCO, over which the mean is taken."""

RECALLS = np.linspace(0, 1, 101)
"""At which precision is read, as COCO does."""

BOX_FORMATS = {
    "xyxy": "two corners",
    "xywh": "the upper left corner, width and height",
    "cxcywh": "the centre, width and height",
}
"""What the four numbers of a box are, by torchmetrics' word for it."""

MOST_DETECTIONS = 100
"""Of a class in an image; those with lower scores do not count, as in COCO."""

AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""From which to which area in pixels objects count, as COCO has it."""

MOST_AT_A_TIME = 2**20
"""Of how many detections groups are scored at once."""

Image = dict[str, np.ndarray]
"""What is in an image: arrays by name."""


@dataclass(frozen=True)
class BoxMAP(Metric):
    """Mean average precision of boxes, as of COCO (https://cocodataset.org/#detection-eval), in [0, 1].

    Equal to pycocotools' COCOeval, which finds the object that each box is. Of a class that no reference has nothing
    counts, as there; nan where there is no reference at all. An image is matched once, however many groups it is drawn
    into; of boxes with the same score, those of the image that comes first in the group go first.

    Predictions are a list with a dictionary for each image: `boxes` [n, 4], `scores` [n] and `labels` [n], which are
    class indices. References likewise, with `boxes` [m, 4] and `labels` [m], and if wanted `iscrowd` [m], 1 for a
    region of objects that are not drawn one by one, and `area` [m] in place of that of the box. All are tensors, arrays
    or lists; n and m may be 0. For `area` boxes are in pixels, else in any unit.

    Args:
        box_format: what the four numbers of a box are: "xyxy", two corners; "xywh", the upper left corner, width and
            height; "cxcywh", the centre, width and height.
        iou_threshold: the least intersection over union at which a box is an object, such as 0.5 for map_50; None for
            the mean over 0.5, 0.55, ... 0.95.
        area: which objects count: "all", "small" (up to 32² pixels), "medium" or "large" (96² or more).

    Raises:
        ImportError: without pycocotools.
        ValueError: for an option that is none of these; where a score is computed, for images of any other form, boxes
            that are not finite or have a negative width or height, and scores that are nan.
    """

    name: ClassVar[str] = "box_map"
    libraries: ClassVar[tuple[str, ...]] = ("pycocotools",)
    watched_only: ClassVar[str] = (
        "no surrogate reads boxes, so models of them are trained on their own loss. Use transformers' Trainer, and let "
        "compute_metrics return {'box_map': load_metric('box_map').compute(predictions, references)}: "
        "metric_for_best_model='box_map' then chooses the best checkpoint."
    )

    box_format: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"
    iou_threshold: float | None = None
    area: Literal["all", "small", "medium", "large"] = "all"

    def __post_init__(self) -> None:
        for option, known in (("box_format", BOX_FORMATS), ("area", AREAS)):
            if getattr(self, option) not in known:
                raise ValueError(
                    f"{self.name}: {option} is one of {', '.join(known)}, but got {getattr(self, option)!r}."
                )
        threshold = self.iou_threshold
        if threshold is not None and not (isinstance(threshold, int | float) and 0 < threshold <= 1):
            raise ValueError(
                f"{self.name}: iou_threshold is a number above 0, up to 1, or None for the mean over 0.5 to 0.95, but "
                f"got {threshold!r}."
            )
        need("pycocotools", "detection")

    def read(self, predictions: Any, references: Any) -> tuple[list[Image], list[Image]]:
        """Images as arrays of float64 and int64, checked; boxes as x, y, width and height."""
        read = []
        for side, images in (("predictions", predictions), ("references", references)):
            if isinstance(images, Mapping | str) or not isinstance(images, Sequence | np.ndarray):
                hint = ": put it into a list" if isinstance(images, Mapping) else ""
                raise ValueError(
                    f"{self.name} wants {side} as a list with a dictionary for each image, but got "
                    f"{type(images).__name__}{hint}."
                )
            read.append([self._image(image, side, f"{side}[{place}]") for place, image in enumerate(images)])
        same_length(self.name, *read)
        return read[0], read[1]

    def _image(self, image: Any, side: str, where: str) -> Image:
        wanted = ["boxes", "labels"] if side == "references" else ["boxes", "scores", "labels"]
        if not isinstance(image, Mapping) or not set(wanted) <= image.keys():
            given, hint = type(image).__name__, ""
            if isinstance(image, Mapping):
                given = f"one with {', '.join(map(str, image)) or 'nothing'}"
                hint = ": pass class_labels as labels" if "class_labels" in image else ""
            raise ValueError(
                f"{self.name} wants {side} as dictionaries with {', '.join(wanted)}, but {where} is {given}{hint}."
            )
        optional = [key for key in ("iscrowd", "area") if side == "references" and image.get(key) is not None]
        found = {key: self._array(image[key], f"{where}[{key!r}]") for key in wanted + optional}
        if found["boxes"].shape == (0,):
            found["boxes"] = np.zeros((0, 4))
        shapes = {key: list(values.shape) for key, values in found.items()}
        number = len(found["boxes"]) if found["boxes"].ndim else 0
        for key, shape in shapes.items():
            if shape != ([number, 4] if key == "boxes" else [number]):
                raise ValueError(
                    f"{self.name} wants boxes [n, 4] and, of each of them, one of {', '.join([*shapes][1:])}, [n], but "
                    f"{where} has {', '.join(f'{key} {shape}' for key, shape in shapes.items())}."
                )
            if key != "boxes" and np.isnan(found[key]).any():
                raise ValueError(f"{self.name} wants {key} that are numbers, but {where}[{key!r}] has nan.")
        if (found["labels"] % 1 != 0).any():
            wrong = found["labels"][found["labels"] % 1 != 0][0]
            raise ValueError(f"{self.name} wants labels that are class indices, but {where}['labels'] has {wrong}.")
        found["boxes"] = self._as_xywh(found["boxes"], where)
        return found | {key: found[key].astype(np.int64) for key in ("labels", "iscrowd") if key in found}

    def _array(self, values: Any, where: str) -> np.ndarray:
        try:
            return np.asarray(on_host(values), dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(
                f"{self.name} wants a tensor, an array or a list of numbers, but {where} is {values!r:.100}."
            ) from None

    def _as_xywh(self, boxes: np.ndarray, where: str) -> np.ndarray:
        corner, size = boxes[:, :2], boxes[:, 2:]
        if self.box_format == "xyxy":
            size = size - corner
        elif self.box_format == "cxcywh":
            corner = corner - size / 2
        wrong = ~(np.isfinite(boxes).all(1) & (size >= 0).all(1))
        if wrong.any():
            raise ValueError(
                f"{self.name} wants finite boxes of a width and a height of 0 or more, but {where}['boxes'] has "
                f"{boxes[wrong][0].tolist()}, which is none by box_format={self.box_format!r}. That can be "
                f"{', '.join(f'{word!r} ({what})' for word, what in BOX_FORMATS.items())}."
            )
        return np.concatenate([corner, size], axis=1)

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        matched = self._matched(*self.read(predictions, references))
        index = index.cpu()
        if matched is None:
            return torch.full((len(index),), math.nan, dtype=torch.float64)
        per_group = index.shape[1] * (1 + len(matched.classes) // len(matched.counts))
        at_a_time = max(1, MOST_AT_A_TIME // max(1, per_group))
        return torch.cat([matched.scores(part) for part in index.split(at_a_time)])

    def _matched(self, predictions: list[Image], references: list[Image]) -> "Matched | None":
        """Which object each box is, at each threshold; None where there is no object."""
        classes = sorted({label for image in references for label in image["labels"].tolist()})
        if not classes:
            return None
        coco, evaluation = need("pycocotools.coco", "detection"), need("pycocotools.cocoeval", "detection")
        with contextlib.redirect_stdout(io.StringIO()):
            of_coco = []
            for images in (references, predictions):
                of_coco.append(coco.COCO())
                of_coco[-1].dataset = {
                    "images": [{"id": place} for place in range(len(images))],
                    "categories": [{"id": label} for label in classes],
                    "annotations": _annotations(images, set(classes)),
                }
                of_coco[-1].createIndex()
            found = evaluation.COCOeval(*of_coco, iouType="bbox")
            found.params.iouThrs = IOU_THRESHOLDS if self.iou_threshold is None else np.array([self.iou_threshold])
            found.params.areaRng, found.params.areaRngLbl = [list(AREAS[self.area])], [self.area]
            found.params.maxDets = [MOST_DETECTIONS]
            found.evaluate()
        return Matched(found.evalImgs, len(references), len(found.params.iouThrs))


class Matched:
    """Boxes of n images, and whether they are objects: an accumulation as of COCOeval, of many groups at once.

    Args:
        evaluated: what COCOeval found of each class and image, [C * n]; None where neither has a box.
        number: n.
        thresholds: T, at how many thresholds.

    Attributes:
        classes, ranks: [D] int64, of the boxes that are predicted, image by image: of which class, and at which place
            among all by their scores, highest first; equal scores have equal places.
        hits, misses: [T, D] bool, which boxes are objects, and which are none; others do not count.
        counts, starts: [n] int64, how many boxes each image has, and where they begin.
        objects: [n, C] float64, how many objects of each class an image has.
    """

    def __init__(self, evaluated: list[dict[str, Any] | None], number: int, thresholds: int):
        self.objects = torch.zeros(number, len(evaluated) // number, dtype=torch.float64)
        self.counts, classes, scores = np.zeros(number, np.int64), [np.zeros(0, np.int64)], [np.zeros(0)]
        hits, ignored = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
        by_image = sorted(range(len(evaluated)), key=lambda place: place % number)
        for place in by_image:
            each, (kind, image) = evaluated[place], divmod(place, number)
            if each is not None:
                self.objects[image, kind] = int(np.count_nonzero(each["gtIgnore"] == 0))
                self.counts[image] += len(each["dtScores"])
                classes.append(np.full(len(each["dtScores"]), kind))
                scores.append(np.array(each["dtScores"]))
                hits.append(each["dtMatches"] > 0)
                ignored.append(each["dtIgnore"].astype(bool))
        self.starts, self.classes = np.cumsum(self.counts) - self.counts, np.concatenate(classes)
        self.ranks = np.unique(-np.concatenate(scores), return_inverse=True)[1]
        matched, counts = np.concatenate(hits, axis=1), ~np.concatenate(ignored, axis=1)
        self.hits, self.misses = matched & counts, ~matched & counts

    def scores(self, index: torch.Tensor) -> torch.Tensor:
        """Mean average precisions [m] float64 of groups index [m, N]; nan where there is no object."""
        objects = add_up(self.objects, index).numpy()
        images, (groups, classes) = index.numpy().ravel(), objects.shape
        counts = self.counts[images]
        drawn = np.repeat(self.starts[images] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        part = np.repeat(np.arange(groups).repeat(index.shape[1]), counts) * classes + self.classes[drawn]
        order = np.argsort(part * (len(self.ranks) + 1) + self.ranks[drawn], kind="stable")
        drawn, part = drawn[order], part[order]
        found = sum(
            _summed_precisions(hits[drawn], misses[drawn], part, objects.ravel())
            for hits, misses in zip(self.hits, self.misses, strict=True)
        )
        precisions = np.reshape(found, objects.shape).sum(1) / (len(self.hits) * len(RECALLS))
        present = (objects > 0).sum(1)
        return torch.from_numpy(np.where(present > 0, precisions, np.nan) / np.maximum(present, 1))


def _summed_precisions(hits: np.ndarray, misses: np.ndarray, part: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Precisions at all recalls, added up, [P] of parts, each a class of a group.

    Only hits matter: precision at a recall is the best that a hit has from there on.

    Args:
        hits, misses: [B] bool, of boxes by descending scores, part by part.
        part: [B] int64, of which part they are, ascending.
        objects: [P], how many objects a part has.
    """
    (places,) = hits.nonzero()
    of = part[places]
    nth = np.arange(1, len(of) + 1) - np.searchsorted(of, of)
    missed = np.concatenate([[0], np.cumsum(misses)])
    missed = missed[places] - missed[np.searchsorted(part, of)]
    best = nth / (missed + nth + np.spacing(1))
    step = 1
    while step < nth.max(initial=0):  # after each turn, the best of twice as many
        later = np.where(of[step:] == of[:-step], best[step:], 0)
        best[:-step] = np.maximum(best[:-step], later)
        step *= 2
    reached = np.searchsorted(RECALLS, nth / objects[of], side="right")
    before = np.where(nth > 1, np.searchsorted(RECALLS, (nth - 1) / objects[of], side="right"), 0)
    return np.bincount(of, (reached - before) * best, minlength=len(objects))


def _annotations(images: list[Image], classes: set[int]) -> list[dict[str, Any]]:
    """Boxes of some classes as COCO has them; ids begin at 1, for 0 is none to it."""
    found: list[dict[str, Any]] = []
    for place, image in enumerate(images):
        for row, label in enumerate(image["labels"].tolist()):
            if label in classes:
                own = {"area": image["boxes"][row, 2] * image["boxes"][row, 3], "iscrowd": 0}
                own |= {key: image[key][row] for key in ("area", "iscrowd") if key in image}
                own |= {"score": image["scores"][row]} if "scores" in image else {}
                box = image["boxes"][row].tolist()
                found.append({"id": len(found) + 1, "image_id": place, "category_id": label, "bbox": box} | own)
    return found
