"""How every picture looks, and how it is saved."""

import contextlib
import functools
import io
from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any

from ..._core.errors import ConfigError
from ..text import tick_texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


TRAIN, VALIDATION = "#0072b2", "#d55e00"  # Okabe and Ito: distinct to colour-blind eyes too


INK, QUIET, LINES = "#1f2933", "#6b7785", "#e3e7eb"


_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#b4bcc5",
    "axes.grid": True,
    "axes.labelcolor": QUIET,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlepad": 9,
    "axes.titlesize": 12,
    "font.size": 10,
    "grid.color": LINES,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 150,
    "text.color": INK,
    "xtick.color": "#b4bcc5",
    "xtick.labelcolor": QUIET,
    "xtick.labelsize": 9,
    "xtick.major.pad": 7,
    "xtick.major.size": 0,
    "ytick.color": "#b4bcc5",
    "ytick.labelcolor": QUIET,
    "ytick.labelsize": 9,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


SHADES = [(0.0, "#f7f9fb"), (0.08, "#d9e8f3"), (0.35, "#8fbfe0"), (0.7, TRAIN), (1.0, "#00406a")]


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The style of our pictures, for as long as it is entered."""
    try:
        import matplotlib.style
    except ImportError as error:
        raise ConfigError(
            'pictures are drawn by Matplotlib, which is not installed: `pip install "fntrain[plot]"`; '
            "`print(fntrain.plots.text(history))` draws learning curves without it"
        ) from error
    with matplotlib.style.context(["default", _STYLE]):
        yield


def ticks() -> Any:
    """What writes an axis's numbers as `tick_texts` does: a formatter of Matplotlib's."""
    from matplotlib.ticker import Formatter

    class Ticks(Formatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return tick_texts([x])[0]

        def format_ticks(self, values: Any) -> list[str]:
            # Matplotlib has some beyond what is in view, which it does not draw.
            low, high = sorted(self.axis.get_view_interval())  # type: ignore[union-attr]
            seen = [v for v in values if low - (high - low) * 1e-9 <= v <= high + (high - low) * 1e-9]
            texts = dict(zip(seen, tick_texts(seen)))
            return [texts.get(v, "") for v in values]

        def __reduce__(self) -> Any:  # for a pickle, as its class has no place of its own
            return ticks, (), vars(self)

    return Ticks()


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of that size, in inches, that shows itself in a notebook."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # type: ignore[union-attr]
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]  # what notebooks ask for
    return figure


def _png(figure: "Figure") -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def saved(figure: "Figure", path: str | PathLike[str] | None) -> "Figure":
    """The figure itself, saved if there is a path."""
    if path is not None:
        figure.savefig(path)
    return figure
