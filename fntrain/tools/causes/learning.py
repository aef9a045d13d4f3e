"""Rules about what was learned: nothing at all, a constant, too much of the training data, by half of the units."""

import math

import jax.numpy as jnp
import numpy as np

from ... import tree
from .evidence import Evidence
from .picture import picture
from .rule import Seen, rule


@rule(above=0.5)
def never_finite(evidence: Evidence) -> Seen | str:
    """NaN or infinity for a loss."""
    losses = evidence.column("loss")
    if not losses:
        return "no epoch has ended"
    share = sum(not math.isfinite(x) for x in losses) / len(losses)
    return Seen(
        share,
        f"the loss of {share:.0%} of the epochs is not finite",
        "Wrap the optimizer in `skip_nonfinite`, which names the leaf and keeps the step for `tools.replay`; lower the "
        "rate, or clip",
    )


@rule(below=0.01)
def flat_at_chance(evidence: Evidence) -> Seen | str:
    """A loss that stays where guessing is: the logarithm of a number of classes."""
    losses = evidence.finite("loss")
    if few := evidence.few(3, "loss"):
        return few
    fall, last = (losses[0] - min(losses)) / abs(losses[0] or 1.0), losses[-1]
    classes = evidence.classes or (round(math.exp(last)) if 0.5 < last < 12 else 0)
    if classes < 2 or abs(last / math.log(classes) - 1) > 0.02:
        return Seen(1.0, "the loss is not at chance", "")
    return Seen(
        fall,
        f"the loss fell by {fall:.2%} in {len(losses)} epochs, and is that of guessing among {classes} classes",
        "See that gradients arrive (`record_norms`), that the rate is not too low (`tools.lr_find`), and that labels "
        "belong to their inputs",
        lambda: picture(
            evidence, "loss", ["loss", "val_loss"], {f"guessing among {classes}": math.log(classes)}
        ),
    )


@rule(above=0.25)
def validation_gap(evidence: Evidence) -> Seen | str:
    """A validation loss that rises while the training loss falls."""
    pairs = [
        (a, b) for a, b in zip(evidence.column("loss"), evidence.column("val_loss")) if math.isfinite(a + b)
    ]
    if len(pairs) < 3:
        return (
            evidence.few(3, "val_loss", "loss")
            or "`loss` and `val_loss` are finite together in less than 3 epochs"
        )
    best = min(range(len(pairs)), key=lambda i: pairs[i][1])
    least, last = pairs[best][1], pairs[-1][1]
    rise = (last - least) / abs(least) if least and pairs[-1][0] < pairs[best][0] else 0.0
    return Seen(
        rise,
        f"`val_loss` is {rise:.0%} above its best, of epoch {best + 1}, while `loss` went on falling",
        'Stop there (`EarlyStopping("val_loss")`, `fit(..., keep_best=True)`), decay the weights, or find more data',
        lambda: picture(
            evidence,
            "loss and val_loss",
            ["loss", "val_loss"],
            {"a quarter above its best": least + abs(least) / 4},
        ),
    )


@rule(above=0.5)
def dead_units(evidence: Evidence) -> Seen | str:
    """Units that no row of a batch has a gradient for."""
    if evidence.gradient is None:
        return evidence.lacks
    worst, name = 0.0, ""
    for path, g in tree.items(evidence.gradient):
        if np.ndim(g) >= 2 and jnp.issubdtype(g.dtype, jnp.floating):
            units = np.abs(np.asarray(g, np.float32)).reshape(-1, g.shape[-1]).max(axis=0)
            share = float((units == 0).mean())
            worst, name = max((worst, name), (share, path))
    return Seen(
        worst,
        f"{worst:.0%} of the units of `{name}` have no gradient for any row of a batch",
        "They are dead, as behind a ReLU that is always off: lower the rate, warm it up, or take a leaky activation",
    )
