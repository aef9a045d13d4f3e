"""Rules about the data: labels that cannot be, labels that mean nothing, batches of padding."""

import math
import re

import numpy as np

from ...data.cut import from_json, largest
from .evidence import Evidence
from .picture import picture
from .rule import Seen, rule


@rule(above=0.0)
def labels_out_of_range(evidence: Evidence) -> Seen | str:
    """Labels that are no class of the logits; -100, by which losses ignore, is left alone."""
    if evidence.classes is None:
        return evidence.lacks_classes
    labels = np.asarray(evidence.outputs["labels"])
    if not np.issubdtype(labels.dtype, np.integer):
        return f"the labels are no integers, but {labels.dtype}"
    wrong = ((labels < 0) | (labels >= evidence.classes)) & (labels != -100)
    if evidence.weight is not None:
        wrong = wrong[np.asarray(evidence.weight) > 0]
    share = float(wrong.mean()) if wrong.size else 0.0
    return Seen(
        share,
        f"{share:.0%} of a batch's labels lie outside of 0 to {evidence.classes - 1}: from {labels.min()} to "
        f"{labels.max()}",
        "Classes count from 0, and the last layer has one output a class",
    )


@rule(above=0.98)
def labels_shuffled(evidence: Evidence) -> Seen | str:
    """What is learned by heart, and helps nothing elsewhere: labels that do not belong to their inputs."""
    losses, validated = evidence.finite("loss"), evidence.finite("val_loss")
    if few := evidence.few(3, "val_loss", "loss"):
        return few
    if evidence.classes is None:
        return evidence.lacks_classes
    chance = math.log(evidence.classes)
    learned = losses[-1] < 0.8 * chance and losses[-1] < losses[0]
    best = min(validated) / chance
    return Seen(
        best if learned else 0.0,
        f"`loss` falls, and `val_loss` was never better than {best:.0%} of guessing among {evidence.classes} classes",
        "The labels seem not to belong to their inputs: see that both were shuffled, joined and cut alike",
        lambda: picture(
            evidence, "loss", ["loss", "val_loss"], {f"guessing among {evidence.classes}": chance}
        ),
    )


@rule(above=0.25)
def padding(evidence: Evidence) -> Seen | str:
    """Rows of weight zero, which the last batch of an epoch is filled up with."""
    data = evidence.config.get("identity", {}).get("data", {})
    shapes = [re.search(r"\[(\d+)", str(form)) for form in data.get("leaves", {}).values()]
    size = data.get("batch_size")
    if not size or not shapes or shapes[0] is None:
        return "it takes `config.json` with the sizes of data and batch: a run with a `run_dir`, on arrays"
    rows, size = int(shapes[0][1]), largest(from_json(size))
    computed = -(-rows // size) * size
    share = 0.0 if data.get("drop_last") else 1 - rows / computed
    return Seen(
        share,
        f"{share:.0%} of the rows that an epoch computes are padding: {rows} examples in batches of {size}",
        "Take a `batch_size` that divides the data, or nearly does",
    )
