"""LivePlot: curves in a notebook that are drawn anew while the run goes on."""

import base64
import html
from collections.abc import Callable, Sequence
from typing import Any

import jax

from .._core.errors import ConfigError
from .._core.lenient import Lenient
from .._core.made import Made
from ..run.context import LoopContext
from ..show.notebook import Output, in_notebook
from ..show.plots.panels import bookkeeping, is_logarithmic
from ..show.report.chart import Series, is_finite, picture
from ..show.text import better, is_number, reading_order
from ..step.task import COLUMNS


class LivePlot(Made):
    """Draw a run's curves in the notebook's cell, in one output that is replaced: running means, epochs, validations.

    It is drawn where numbers are logged, every `log_every` steps, at validations and at epochs' ends, and nowhere else:
    between them it costs the loop nothing. No Matplotlib is needed. Outside a notebook nothing is drawn.

    Args:
      metrics: which columns, without `val_`; None takes the loss and the scores.
      show: what is called with each drawing, HTML, in place of a notebook's output.

    Raises:
      ConfigError: if `metrics` is no list of names, or `show` no function.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> drawn = []
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": np.float32(0)})
      >>> live = ft.callbacks.LivePlot(show=drawn.append)
      >>> _ = ft.fit(task, state, np.ones(4, np.float32), epochs=3, callbacks=[live], progress=False)
      >>> len(drawn), drawn[-1].count("<img")
      (3, 1)
    """

    adds_logs = False

    def __init__(self, metrics: Sequence[str] | None = None, *, show: Callable[[str], Any] | None = None):
        if metrics is not None and (
            isinstance(metrics, str) or not all(isinstance(name, str) for name in metrics)
        ):
            raise ConfigError(f'`metrics` must be a list of names such as ["loss"], got {metrics!r}')
        if show is not None and not callable(show):
            raise ConfigError(f"`show` must be a function of the drawing, `show(html)`, got {show!r}")
        self.metrics: tuple[str, ...] | None = None if metrics is None else tuple(metrics)
        self._given = show
        self._show: Callable[[str], Any] | None = None
        self._points: dict[tuple[str, str], list[tuple[int, float]]] = {}
        self._lenient = Lenient("the live plot", (Exception,))

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Make the output, and take the rows of a run that is resumed."""
        self._points, self._show = {}, None
        self._lenient = Lenient("the live plot", (Exception,))
        if jax.process_index() != 0:
            return
        with self._lenient:
            self._show = self._given or (Output().show if in_notebook() else None)
        for row in ctx.history.rows():
            self._take(row, int(row.get("step", 0)), "training")

    def on_log(self, ctx: LoopContext) -> None:
        """Add the running means, and draw."""
        self._take(ctx.logs, int(ctx.logs.get("step", ctx.step)), "running")
        self._draw()

    def on_validation_end(self, ctx: LoopContext) -> None:
        """Add what a validation inside an epoch measured, and draw."""
        if ctx.validated:
            self._take(
                {name: ctx.logs[name] for name in ctx.validated if name in ctx.logs}, ctx.step, "training"
            )
            self._draw()

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Add the epoch's row, and draw."""
        self._take(ctx.logs, ctx.step, "training")
        self._draw()

    def close(self) -> None:
        """Let go of the output, which stays as it is."""
        self._show = None

    def _take(self, row: dict[str, Any], step: int, kind: str) -> None:
        if self._show is None:
            return
        for column, x in row.items():
            name = column.removeprefix("val_")
            drawn = (
                better(name) is not None and not bookkeeping(name)
                if self.metrics is None
                else name in self.metrics
            )
            if drawn and column not in COLUMNS and is_number(x):
                line = "validation" if column.startswith("val_") else kind
                self._points.setdefault((name, line), []).append((step, float(x)))

    def _draw(self) -> None:
        if self._show is None or self._lenient.failed:
            return
        with self._lenient:
            names = sorted({name for name, _ in self._points}, key=reading_order)
            self._show("".join(map(self._image, names)))

    def _image(self, name: str) -> str:
        """One column's curves, as an image: a document of its own, which no style of the notebook reaches."""
        series = []
        for color, kind in ((2, "running"), (0, "training"), (1, "validation")):
            points = self._points.get((name, kind), [])
            if any(is_finite(y) for _, y in points):
                xs, ys = [x for x, _ in points], [y for _, y in points]
                dots = () if kind == "running" else range(len(xs))
                series.append(Series(kind, xs, ys, color=color, dots=dots))
        if not series:
            return ""
        values = [y for line in series for y in line.y if is_finite(y)]
        log = is_logarithmic(name, min(values), max(values))  # type: ignore[type-var]
        drawn = picture(name.replace("_", " "), series, x_label="step", log=log)
        data = base64.b64encode(drawn.encode()).decode()
        return (
            f'<img alt="{html.escape(name)}" src="data:image/svg+xml;base64,{data}" style="max-width:100%">'
        )
