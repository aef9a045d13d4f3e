"""Pictures of a run and of its results, as Matplotlib figures.

Every function returns a `matplotlib.figure.Figure` that belongs to nobody else: nothing is registered with
pyplot, so figures work without a display, need no closing, and show themselves in a notebook. The user's own
style settings neither change the pictures nor are changed by them.
"""

import contextlib
import functools
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _check
from ._check import ConfigError, DataError
from .loop.progress import best_index, better, number_text, reading_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN, _VALIDATION = "#0072b2", "#d55e00"  # Okabe and Ito: distinct to colour-blind eyes too
_INK, _QUIET, _LINES = "#1f2933", "#6b7785", "#e3e7eb"
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#b4bcc5",
    "axes.grid": True,
    "axes.labelcolor": _QUIET,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlepad": 9,
    "axes.titlesize": 12,
    "font.size": 10,
    "grid.color": _LINES,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 150,
    "text.color": _INK,
    "xtick.color": "#b4bcc5",
    "xtick.labelcolor": _QUIET,
    "xtick.labelsize": 9,
    "xtick.major.pad": 7,
    "xtick.major.size": 0,
    "ytick.color": "#b4bcc5",
    "ytick.labelcolor": _QUIET,
    "ytick.labelsize": 9,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}
_SHADES = [(0.0, "#f7f9fb"), (0.08, "#d9e8f3"), (0.35, "#8fbfe0"), (0.7, _TRAIN), (1.0, "#00406a")]
_SLIM = ("learning_rate", "grad_norm")  # drawn below the metrics, at half their height
_BOOKKEEPING = re.compile(
    r"^(epochs?|steps?|updates|examples|skipped|clip_factor|loss_scale|grad_norm_max)$"
    r"|second|memory|bytes|(^|_)time(_|$)"
)


@contextlib.contextmanager
def _style() -> Iterator[None]:
    try:
        import matplotlib.style
    except ImportError as error:
        raise ConfigError(
            'pictures are drawn by Matplotlib, which is not installed: `pip install "fntrain[plot]"`'
        ) from error
    with matplotlib.style.context(["default", _STYLE]):
        yield


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # type: ignore[union-attr]
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]  # what notebooks ask for
    return figure


def _png(figure: "Figure") -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _saved(figure: "Figure", path: str | PathLike | None) -> "Figure":
    if path is not None:
        figure.savefig(path)
    return figure


def learning_curves(
    history: Mapping[str, Sequence],
    *,
    metrics: Iterable[str] | None = None,
    title: str | None = None,
    path: str | PathLike | None = None,
) -> "Figure":
    """Draw what a run measured at each epoch, training and validation together.

    One panel a metric, with the last values written at the curves' ends and a ring at the best epoch (of the
    validation where there is one); below, slimmer, the learning rate and the gradient norm. An entry that is
    None, NaN or infinite is a gap. A loss that falls far is drawn on a logarithmic axis.

    Args:
      history: column -> one value an epoch, as `fit` returns it. `val_x` belongs to `x`; a column `epoch`
        numbers the epochs, which else count from 1. Columns that hold no numbers are left out.
      metrics: the columns to draw, without `val_`; None draws all but those that only keep the books (counts,
        times).
      title: a line above the picture.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure.

    Raises:
      ConfigError: if Matplotlib is missing, or `metrics` names what `history` doesn't have.
      DataError: if there is nothing to draw, or the columns differ in length.

    Examples:
      >>> figure = learning_curves({"loss": [0.9, 0.5, 0.4], "val_loss": [0.8, 0.6, 0.7]})
      >>> [axes.get_title(loc="left") for axes in figure.axes]
      ['loss']
    """
    columns = _columns(history)
    length = len(next(iter(columns.values())))
    epochs = columns.pop("epoch", np.full(length, np.nan))
    if not np.isfinite(epochs).all():
        epochs = np.arange(1.0, length + 1)
    names = _panels(columns, metrics)
    tall = [name for name in names if name not in _SLIM]
    slim = [name for name in _SLIM if name in names]
    across = 1 if len(tall) <= 3 else 2
    cells = [*tall, *[None] * (-len(tall) % across), *slim]
    heights = [2.3 if i < len(tall) else 1.15 for i in range(0, len(cells), across)]
    with _style():
        from matplotlib.ticker import MaxNLocator

        figure = _figure(8 if across == 1 else 13, sum(heights) + 0.4 + 0.3 * (title is not None))
        if title is not None:
            figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
        grid = figure.add_gridspec(len(heights), across, height_ratios=heights)
        bottom: dict[int, Axes] = {}
        labels: list[list] = []
        for i, name in enumerate(cells):
            if name is not None:
                axes = figure.add_subplot(grid[i // across, i % across], sharex=bottom.get(0))
                axes.tick_params(labelbottom=False)
                bottom[i % across] = axes
                labels.append(_panel(axes, epochs, columns, name))
        for axes in bottom.values():
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("epoch")
        pad = 0.5 if length == 1 else 0.015 * (epochs[-1] - epochs[0])
        figure.axes[0].set_xlim(epochs[0] - pad, epochs[-1] + pad)
        figure.axes[0].xaxis.set_major_locator(
            MaxNLocator(10, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
        )
        figure.draw_without_rendering()  # only now is it known where the labels stand
        for pair in labels:
            _separate(pair)
        return _saved(figure, path)


def _columns(history: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
    """Turn the columns of numbers into float arrays, with NaN for what is missing or infinite."""
    columns: dict[str, np.ndarray] = {}
    for name in history:
        try:
            values = np.array([np.nan if v is None else v for v in history[name]], np.float64)
        except (TypeError, ValueError):  # a table an epoch, or text
            continue
        if values.ndim == 1:
            columns[name] = np.where(np.isfinite(values), values, np.nan)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"the columns of `history` must have one entry an epoch each, got the lengths {lengths}"
        )
    if not any(lengths.values()):
        raise DataError("`history` must hold numbers of at least one epoch, got none")
    return columns


def _panels(columns: Mapping[str, np.ndarray], metrics: Iterable[str] | None) -> list[str]:
    """List the names to draw, a metric and its validation being one."""
    there = sorted(dict.fromkeys(name.removeprefix("val_") for name in columns), key=reading_order)
    if metrics is None:
        measured = [name for name in columns if np.isfinite(columns[name]).any()]
        names = [n for n in there if not _BOOKKEEPING.search(n) and {n, "val_" + n} & {*measured}]
    else:
        names = [n.removeprefix("val_") for n in ([metrics] if isinstance(metrics, str) else metrics)]
        for name in names:
            _check.one_of("metrics", name, there)
    if not names:
        raise DataError(f"there is no metric to draw; `history` has {', '.join(columns) or 'only epochs'}")
    return list(dict.fromkeys(names))


def _panel(axes: "Axes", epochs: np.ndarray, columns: Mapping[str, np.ndarray], name: str) -> list:
    """Draw one panel and return the labels at the curves' ends."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    series = [("train", _TRAIN, name), ("validation", _VALIDATION, "val_" + name)]
    if name in _SLIM:
        series = [("", _QUIET, name)]
    series = [s for s in series if s[2] in columns and np.isfinite(columns[s[2]]).any()]
    shown = name.replace("_", " ")
    shown = shown if len(shown) <= 28 else "…" + shown[-27:]  # the other half of the line is the best value's
    axes.set_title(shown, loc="left")
    axes.margins(y=0.1)
    if not series:
        return []
    together = np.concatenate([columns[column] for _, _, column in series])
    low, high = np.nanmin(together), np.nanmax(together)
    if low > 0 and high / low > 40 and (better(name) is min or name == "grad_norm"):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 400 else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3 if name in _SLIM else 6))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))

    labels = []
    for label, color, column in series:
        values = columns[column]
        finite = np.isfinite(values)
        alone = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]  # no line would show these
        marked = finite if len(values) <= 40 and name not in _SLIM else alone
        axes.plot(
            epochs,
            values,
            color=color,
            marker="o",
            markersize=3.2,
            linewidth=1.8 if len(values) <= 200 else 1.1,
            markevery=np.flatnonzero(marked).tolist(),
        )
        last = values[finite][-1]
        labels.append(
            axes.annotate(
                f"{label} {number_text(last)}".strip(),
                (1, last),
                (7, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                va="center",
                color=color,
                fontsize=9.5,
            )
        )
    _, color, column = series[-1]
    best = best_index(column, columns[column].tolist())
    if best is not None and len(epochs) > 1:
        x, y = epochs[best], columns[column][best]
        axes.axvline(x, color=color, linewidth=0.9, linestyle=(0, (1, 3)), zorder=1)
        axes.plot(
            x, y, "o", markersize=7.5, markerfacecolor="white", markeredgecolor=color, markeredgewidth=1.6
        )
        axes.set_title(
            f"best {number_text(y)} at epoch {x:.0f}",
            loc="right",
            color=color,
            fontsize=9.5,
            fontweight="normal",
        )
    return labels


def _separate(labels: list, gap: float = 13.0) -> None:
    """Move two labels apart that would stand in each other's way; `gap` in points."""
    if len(labels) < 2:
        return
    axes = labels[0].axes
    points = [axes.transData.transform((0, label.xy[1]))[1] * 72 / axes.figure.dpi for label in labels]
    upper, lower = sorted(range(2), key=lambda i: -points[i])
    short = gap - (points[upper] - points[lower])
    if short > 0:
        labels[upper].xyann = (7, short / 2)
        labels[lower].xyann = (7, -short / 2)


def confusion_matrix(
    matrix: Any,
    labels: Sequence[Any] | None = None,
    normalize: str | None = None,
    *,
    path: str | PathLike | None = None,
) -> "Figure":
    """Draw a confusion matrix: true classes down, predicted classes across.

    A cell is shaded by its share of its true class, so that a rare class reads as well as a common one, and
    shows its count. Up to 25 classes the cells are written in; above that the shading must do.

    Args:
      matrix: counts, shape [K, K], true classes in rows.
      labels: K names of the classes; None numbers them from 0.
      normalize: what the cells show, and are shaded by: None counts (shaded by row), `"true"` shares of the
        row, `"pred"` of the column, `"all"` of everything.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure; its title says the accuracy, unless the matrix was normalised by class already.

    Raises:
      ConfigError: if Matplotlib is missing, `labels` are not K, or `normalize` is none of these.
      DataError: if `matrix` is not square, or holds what is no count.

    Examples:
      >>> confusion_matrix([[8, 2], [1, 9]], ["cat", "dog"]).axes[0].get_title()
      'accuracy 0.8500'
    """
    _check.one_of("normalize", normalize, (None, "true", "pred", "all"))
    counts = np.asarray(matrix, np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.size == 0:
        raise DataError(f"`matrix` must be square, [classes, classes], got the shape {counts.shape}")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise DataError("`matrix` must hold counts >= 0, got negative or non-finite entries")
    k = len(counts)
    names = [str(x) for x in (range(k) if labels is None else labels)]
    if len(names) != k:
        raise ConfigError(f"`labels` must name the {k} classes of `matrix`, got {len(names)}")

    axis = {"pred": 0, "all": (0, 1)}.get(normalize or "true", 1)
    total = counts.sum(axis, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    whole = bool((counts == np.round(counts)).all())
    if normalize is not None or not whole:
        texts = np.vectorize(lambda x: f"{x:.2f}")(counts if normalize is None else shares)
    else:
        texts = np.vectorize(lambda x: f"{x:.0f}")(counts)

    with _style():
        from matplotlib.colors import LinearSegmentedColormap

        cell = float(np.clip(6.2 / k, 0.36 if k <= 25 else 0.0, 1.05))  # inches
        longest = max(map(len, names))
        figure = _figure(cell * k + 1.7 + 0.07 * longest, cell * k + 1.3 + 0.05 * longest * (longest > 3))
        axes = figure.add_subplot()
        axes.grid(False)
        colours = LinearSegmentedColormap.from_list("share", _SHADES)
        top = max(shares.max(), 1e-9) if normalize == "all" else 1.0
        image = axes.imshow(shares, cmap=colours, vmin=0, vmax=top)
        if k <= 25:
            size = min(11.0, 0.86 * cell * 72 / (0.62 * max(map(len, texts.ravel()))))
            light = image.to_rgba(shares)[..., :3] ** 2.2 @ [0.2126, 0.7152, 0.0722] > 0.18
            for (row, column), text in np.ndenumerate(texts):
                color = "#8f9aa6" if counts[row, column] == 0 else "black" if light[row, column] else "white"
                axes.text(column, row, text, ha="center", va="center_baseline", fontsize=size, color=color)
        every = next(10**i * n for i in range(9) for n in (1, 2, 5) if k <= 25 * 10**i * n)
        ticks = np.arange(0, k, every)
        upright = longest * 0.62 * 9 > 0.95 * every * cell * 72  # points of text, points of room
        axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90 if upright else 0)
        axes.set_yticks(ticks, [names[i] for i in ticks])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5 if k <= 25 else 0)
        axes.tick_params(which="minor", length=0)
        accuracy = _accuracy(counts)
        axes.set_title("confusion matrix" if accuracy is None else f"accuracy {number_text(accuracy)}")
        bar = figure.colorbar(image, shrink=0.6 if k > 4 else 0.75, aspect=24, pad=0.03)
        bar.outline.set_visible(False)  # type: ignore[operator]
        of = {"pred": "share of the predicted class", "all": "share of all"}
        bar.set_label(of.get(normalize or "", "share of the true class"))
        return _saved(figure, path)


def _accuracy(counts: np.ndarray) -> float | None:
    """Add the diagonal up; None where rows or columns were normalised, and their sizes are lost."""
    whole = (counts == np.round(counts)).all()
    for axis in (0, 1):
        sums = counts.sum(axis)
        if not whole and np.all(np.isclose(sums, 1) | (sums == 0)):
            return None
    return float(np.trace(counts) / counts.sum()) if counts.sum() > 0 else None


def roc_curve(
    fpr: Any, tpr: Any, auc: float | None = None, *, path: str | PathLike | None = None
) -> "Figure":
    """Draw a receiver operating characteristic, with the diagonal that guessing would follow.

    Args:
      fpr: false positive rates, shape [N], as `scores.roc_auc` returns them.
      tpr: true positive rates, shape [N].
      auc: the area under the curve, for the title.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure.

    Raises:
      ConfigError: if Matplotlib is missing.
      DataError: if the two are not of one length.

    Examples:
      >>> roc_curve([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0], auc=0.875).axes[0].get_title()
      'ROC curve, area 0.8750'
    """
    x, y = _pair("fpr", fpr, "tpr", tpr)
    with _style():
        figure, axes = _unit_square("false positive rate", "true positive rate")
        axes.plot([0, 1], [0, 1], color=_QUIET, linewidth=1, linestyle=(0, (2, 3)))
        axes.annotate(
            "chance", (0.86, 0.86), (4, -4), textcoords="offset points", va="top", color=_QUIET, fontsize=9
        )
        axes.fill_between(x, y, color=_TRAIN, alpha=0.08, linewidth=0)
        axes.plot(x, y, color=_TRAIN, linewidth=2.2, clip_on=False)
        axes.set_title("ROC curve" + (f", area {number_text(auc)}" if auc is not None else ""))
        return _saved(figure, path)


def precision_recall_curve(
    precision: Any, recall: Any, average_precision: float | None = None, *, path: str | PathLike | None = None
) -> "Figure":
    """Draw precision against recall, in steps: no threshold reaches a point between two of the curve.

    Args:
      precision: precisions, shape [N], as `scores.precision_recall_curve` returns them.
      recall: recalls, shape [N].
      average_precision: the area under the steps, for the title.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure.

    Raises:
      ConfigError: if Matplotlib is missing.
      DataError: if the two are not of one length.

    Examples:
      >>> precision_recall_curve([0.5, 1.0, 1.0], [1.0, 0.5, 0.0], 0.75).axes[0].get_title()
      'precision and recall, average precision 0.7500'
    """
    y, x = _pair("precision", precision, "recall", recall)
    with _style():
        figure, axes = _unit_square("recall", "precision")
        axes.fill_between(x, y, step="post", color=_TRAIN, alpha=0.08, linewidth=0)
        axes.step(x, y, where="post", color=_TRAIN, linewidth=2.2, clip_on=False)
        known = average_precision is not None
        axes.set_title(
            "precision and recall"
            + (f", average precision {number_text(average_precision)}" if known else "")
        )
        return _saved(figure, path)


def _pair(first: str, a: Any, second: str, b: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape or x.size == 0:
        raise DataError(f"`{first}` and `{second}` must be [N] both, got the shapes {x.shape} and {y.shape}")
    return x, y


def _unit_square(xlabel: str, ylabel: str) -> tuple["Figure", "Axes"]:
    figure = _figure(4.8, 4.9)
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1.0), xlabel=xlabel, ylabel=ylabel, aspect="equal")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    return figure, axes


def schedule(schedule: Callable[[Any], Any], steps: int, *, path: str | PathLike | None = None) -> "Figure":
    """Draw a schedule over the optimizer's updates, with its boundaries marked if it tells them.

    Args:
      schedule: a function from the count of updates to a value, one of `schedules` or any other.
      steps: how many updates to draw, from 0 to `steps` inclusive.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure, titled with the schedule's repr.

    Raises:
      ConfigError: if Matplotlib is missing, `schedule` can't be called, or `steps` is no integer >= 1.

    Examples:
      >>> schedule(lambda step: 0.1 * 0.5 ** (step // 100), 300).axes[0].get_xlabel()
      'update'
    """
    _check.function("schedule", schedule, "step -> value")
    steps = _check.integer("steps", steps, at_least=1)
    marks = [int(b) for b in getattr(schedule, "boundaries", ()) if 0 < b < steps]
    around = [b + side for b in marks for side in (-1, 0)]  # a jump is upright, however few the points
    at = np.unique(np.r_[np.linspace(0, steps, min(steps, 2000) + 1).round(), around]).astype(np.int32)
    with _style():
        from matplotlib.ticker import StrMethodFormatter

        figure = _figure(8, 3.4)
        axes = figure.add_subplot(xlabel="update", xlim=(0, steps))
        for mark in marks:
            axes.axvline(mark, color=_QUIET, linewidth=0.9, linestyle=(0, (1, 3)))
        axes.plot(at, _values(schedule, at), color=_TRAIN, clip_on=False)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        name = getattr(schedule, "__name__", None) if "<function" in repr(schedule) else repr(schedule)
        axes.set_title("\n".join(textwrap.wrap(name or "schedule", 90)), fontsize=10.5)
        return _saved(figure, path)


def _values(schedule: Callable, at: np.ndarray) -> np.ndarray:
    try:
        values = np.asarray(schedule(at), np.float64)
        if values.shape == at.shape:
            return values
    except Exception:  # a foreign function that takes one step at a time, whatever it says of an array
        pass
    return np.array([float(schedule(int(step))) for step in at])


def lr_finding(
    learning_rates: Any,
    losses: Any,
    suggestion: float | None = None,
    *,
    path: str | PathLike | None = None,
) -> "Figure":
    """Draw the losses of a learning rate sweep, with the suggested rate marked.

    Args:
      learning_rates: the rates, shape [N], > 0.
      losses: the losses, shape [N]; those that are not finite are left out, and what is far above the first is
        cut off.
      suggestion: the rate to mark.
      path: where to save it, as PNG or any format whose suffix Matplotlib knows.

    Returns:
      A Matplotlib figure.

    Raises:
      ConfigError: if Matplotlib is missing.
      DataError: if the two are not of one length.

    Examples:
      >>> lr_finding([0.01, 0.1, 1.0], [2.0, 1.0, 9.0], 0.1).axes[0].get_title()
      'suggested learning rate 0.1000'
    """
    x, y = _pair("learning_rates", learning_rates, "losses", losses)
    shown = np.where(np.isfinite(y), y, np.nan)
    with _style():
        from matplotlib.ticker import StrMethodFormatter

        figure = _figure(8, 3.8)
        axes = figure.add_subplot(xlabel="learning rate", ylabel="loss", xscale="log")
        finite = shown[np.isfinite(shown)]
        if finite.size and (finite > 0).all() and finite.max() / finite.min() > 40:
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.plot(x, shown, color=_TRAIN)
        if finite.size:
            low, first = finite.min(), finite[0]
            top = min(finite.max(), first + 3 * abs(first))  # what diverges would flatten all the rest
            room = 0.05 * (top - low)
            if axes.get_yscale() == "log":
                axes.set_ylim(low / 1.3, top * 1.3)
            elif room > 0:
                axes.set_ylim(low - room, top + room)
        axes.set_xlim(x[0], x[-1])
        if suggestion is None:
            axes.set_title("the loss falls at no learning rate")
        else:
            axes.axvline(suggestion, color=_VALIDATION, linewidth=1.2, linestyle=(0, (2, 3)))
            axes.set_title(f"suggested learning rate {number_text(float(suggestion))}")
        return _saved(figure, path)
