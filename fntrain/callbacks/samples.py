"""Samples: what a model says or draws for some examples, as the run goes on."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.files import replacing, write_text
from .._core.lenient import Lenient
from .._core.made import Made
from ..run.context import LoopContext, Sample
from ..run.predict import predict
from ..show.report.png import as_pixels, png


class Samples(Made):
    """Predict for the same few examples after epochs, and keep what a function of yours makes of it: text or images.

    `render` gets what `predict` returns and gives a text, an image (`[H, W]` or `[H, W, C]`, uint8 or floats from 0 to
    1), or several, as a dict by name or as a list. They are written to `samples/<name>/<step>.txt` or `.png` in the
    run directory, and handed to the trackers that stand after this one (TensorBoard, MLflow, W&B); `fntrain report`
    shows the last ones. A resumed run writes those of its own steps again.

    Args:
      data: the examples, as `predict` takes them.
      render: `(outputs) -> text, image, dict or list of such`; called on the host.
      every: after every so many epochs, >= 1.
      outputs: which outputs, as in `predict`; None is all.
      batch_size: rows of a batch.
      directory: where the files go; None is `samples` in the run directory, or nowhere without one.

    Raises:
      ConfigError: if `render` is no function, a number is out of range, or `directory` is no path.

    Examples:
      >>> import fntrain as ft, numpy as np, tempfile, pathlib
      >>> x = np.ones(4, np.float32)
      >>> def predict_fn(params, batch, ctx):
      ...     return batch * params["w"]
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.25), predict_fn=predict_fn)
      >>> state, run = ft.init_state(task, {"w": np.float32(0)}), pathlib.Path(tempfile.mkdtemp(), "run")
      >>> samples = ft.callbacks.Samples(x[:2], lambda outputs: f"it says {outputs.tolist()}")
      >>> _ = ft.fit(task, state, x, epochs=2, callbacks=[samples], run_dir=run, progress=False)
      >>> [path.read_text() for path in sorted(run.glob("samples/*/*"))]
      ['it says [0.5, 0.5]', 'it says [0.75, 0.75]']
    """

    adds_logs = False

    def __init__(
        self,
        data: Any,
        render: Callable[[Any], Any],
        *,
        every: int = 1,
        outputs: str | Iterable[str] | None = None,
        batch_size: int = 32,
        directory: Any = None,
    ):
        check.function("render", render, "(outputs) -> text or images")
        self.data: Any = data
        self.render: Callable[[Any], Any] = render
        self.every: int = check.integer("every", every, at_least=1)
        self.outputs: str | Iterable[str] | None = outputs
        self.batch_size: int = check.integer("batch_size", batch_size, at_least=1)
        self.directory: Path | None = None if directory is None else check.path("directory", directory)
        self._lenient = Lenient("samples", (OSError,))

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Start anew."""
        del ctx
        self._lenient = Lenient("samples", (OSError,))

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Predict, render and keep, if that is due."""
        if ctx.epoch % self.every:
            return
        found = predict(ctx.task, ctx.state, self.data, outputs=self.outputs, batch_size=self.batch_size)
        samples = _named(self.render(found))
        ctx.samples.update(samples)
        where = self.directory or (None if ctx.run_dir is None else Path(ctx.run_dir) / "samples")
        if where is None or jax.process_index() != 0:
            return
        for name, sample in samples.items():
            with self._lenient:
                _write(where / _file_name(name) / f"{ctx.step:08}", sample)


def _named(made: Any) -> dict[str, Sample]:
    """What `render` returned, by name."""
    if isinstance(made, list | tuple):
        made = {f"{i:02}": x for i, x in enumerate(made)}
    elif not isinstance(made, Mapping):
        made = {"sample": made}
    return {str(name): _sample(str(name), x) for name, x in made.items()}


def _sample(name: str, x: Any) -> Sample:
    if isinstance(x, str):
        return Sample(x)
    if not isinstance(x, np.ndarray | jax.Array):
        raise ConfigError(f"`render` must return text or images, got {check.said(x)} for {name!r}")
    try:
        return Sample(as_pixels(jax.device_get(x)))
    except DataError as error:
        raise DataError(f"`render`, {name!r}: {error}") from None


def _file_name(name: str) -> str:
    return re.sub(r"[^\w\-. ]", "_", name)[:100].lstrip(".") or "_"


def _write(path: Path, sample: Sample) -> None:
    if isinstance(sample.value, str):
        write_text(path.with_suffix(".txt"), sample.value)
        return
    with replacing(path.with_suffix(".png")) as temporary:
        temporary.write_bytes(png(sample.value))
