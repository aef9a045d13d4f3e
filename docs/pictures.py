"""Draw every picture of the site again: `python docs/pictures.py`, into `docs/pictures`.

Plots are Matplotlib's, as `fntrain.plots` makes them; what a terminal shows is recorded by Rich; the way of a batch is
drawn from a run that is watched, file by file. No picture has anything in it that has to be fetched.
"""

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

import fntrain as ft
from fntrain import cli, demo

HERE = Path(__file__).parent / "pictures"
PACKAGE = Path(ft.__file__).parent
PLACES = (
    "data",
    "sharding",
    "run",
    "step",
    "precision",
    "losses",
    "transforms",
    "metrics",
    "checkpoint",
    "callbacks",
    "show",
)
"""The folders that a batch meets, and that are drawn."""
FONT = re.compile(r"@font-face \{.*?\}", re.S)


def terminal(name: str, text: str | Text, width: int = 96) -> None:
    """What a terminal shows, as SVG."""
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(text, highlight=False)
    svg = FONT.sub(
        "",
        console.export_svg(title=name.replace("_", " "), theme=MONOKAI, unique_id=name),
    )
    (HERE / f"{name}.svg").write_text(svg.replace("Fira Code", "ui-monospace"))


def screen(written: str) -> Text:
    """What stands on a terminal after all of this was written to it: a line that lives is drawn over and over."""
    lines, row = [""], 0
    for piece in re.split(r"(\x1b\[\d*[A-HJKl]|\x1b\[\?\d+[lh]|\r|\n)", written):
        if piece == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif piece == "\r" or piece.startswith("\x1b[?"):
            continue
        elif re.fullmatch(r"\x1b\[\d*A", piece):
            row = max(0, row - int(piece[2:-1] or 1))
        elif re.fullmatch(r"\x1b\[\d*K", piece):
            lines[row] = ""
        elif piece:
            lines[row] += piece
    return Text.from_ansi("\n".join(lines).strip("\n"))


def printed(*arguments: str) -> Text:
    """What `fntrain` prints, colours and all."""
    out = io.StringIO()
    os.environ.update(FORCE_COLOR="1", COLUMNS="96")
    with contextlib.redirect_stdout(out):
        cli.main(arguments)
    del os.environ["FORCE_COLOR"], os.environ["COLUMNS"]
    return Text.from_ansi(out.getvalue().strip("\n"))


class Keep:
    """Keeps what was written by the middle of each epoch."""

    def __init__(self, written: io.StringIO, parts: dict[int, str]):
        self.written, self.parts = written, parts

    def on_log(self, ctx) -> None:
        self.parts[ctx.epoch] = self.written.getvalue()


def plots() -> None:
    """All of `fntrain.plots`, of a run of the demo and of small problems."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "digits")
        options = demo.Options(epochs=12)
        prepared = demo.prepare(options)
        written = io.StringIO()
        bar = Console(
            width=96, file=written, force_terminal=True, color_system="truecolor"
        )
        parts, drawn = {}, []

        result = ft.fit(
            prepared.task,
            prepared.state,
            prepared.data,
            epochs=12,
            validation_data=prepared.validation,
            callbacks=[
                ft.callbacks.ProgressBar(console=bar),
                Keep(written, parts),
                ft.callbacks.LivePlot(show=drawn.append),
            ],
            run_dir=run,
            log_every=10,
            progress=False,
        )
        terminal("progress", screen(parts[7]))
        terminal("table", screen(written.getvalue()))
        ft.plots.learning_curves(result.history, path=HERE / "learning_curves.png")
        found = ft.evaluate(prepared.task, result.state, prepared.validation)
        ft.plots.confusion_matrix(
            found["confusion_matrix"], path=HERE / "confusion_matrix.png"
        )
        terminal("text", ft.plots.text(result.history, width=92))
        browser({"live_plot": drawn[len(drawn) // 2]}, 440, 590)
        browser({"report": ft.tools.report([run])}, 1000, 1400)
        os.chdir(folder)
        terminal("inspect", printed("inspect", "digits"))
        terminal("runs", printed("runs", "."))
        tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-3, mask="kernel"))
        terminal(
            "describe", str(ft.tools.describe(tx, prepared.state.params)), width=100
        )
        terminal("state", repr(result.state))
        found = ft.tools.lr_find(prepared.task, prepared.state, prepared.data)
        found.plot(HERE / "lr_finding.png")
    rng = np.random.default_rng(0)
    label = rng.random(400) < 0.3
    score = np.clip(0.35 * label + rng.normal(0.35, 0.18, 400), 0, 1)
    fpr, tpr, _, auc = ft.scores.roc_auc(label, score)
    ft.plots.roc_curve(fpr, tpr, float(auc), path=HERE / "roc_curve.png")
    ft.plots.precision_recall_curve(
        *ft.scores.precision_recall_curve(label, score)[:2],
        path=HERE / "precision_recall_curve.png",
    )
    rate = ft.schedules.warmup(ft.schedules.cosine(1e-3, 900, end=1e-5), 100)
    ft.plots.schedule(rate, 1000, path=HERE / "schedule.png")


def browser(pages: dict[str, str], width: int, height: int) -> None:
    """What a browser shows of pages of HTML, from the top, as PNG."""
    from playwright.sync_api import sync_playwright

    found = next(
        filter(
            None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
        ),
        None,
    )
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        tab = opened.new_page(viewport={"width": width, "height": height})
        for name, page in pages.items():
            tab.set_content(page)
            tab.screenshot(path=HERE / f"{name}.png")
        opened.close()


def population() -> None:
    """Sixteen members, halved."""
    x = np.linspace(-1, 1, 64, dtype=np.float32)

    def loss_fn(params, batch, ctx):
        return ft.losses.mse(params["w"] * batch, 2 * batch)

    task = ft.Task(
        loss_fn, ft.transforms.with_hyperparams(ft.optimizers.sgd, learning_rate=0.1)
    )
    rates = np.geomspace(1e-3, 1, 16).tolist()
    states = ft.population.init(
        task, {"w": jnp.zeros(())}, hyperparams={"learning_rate": rates}
    )
    result = ft.population.fit(
        task, states, x, epochs=8, validation_data=x, batch_size=16, progress=False
    )
    ft.plots.population(result.history, path=HERE / "population.png")


def way_of_a_batch() -> None:
    """The files that run while a batch is trained on, in the order in which they are first entered."""
    met: dict[str, list[str]] = {}

    def watch(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            folder, _, file = frame.f_code.co_filename[
                len(str(PACKAGE)) + 1 : -3
            ].partition("/")
            files = met.setdefault(folder, [])
            if (file or folder) not in files:
                files.append(file or folder)

    x = np.ones((8, 4), np.float32)

    def loss_fn(params, batch, ctx):
        values = ft.losses.mse(batch @ params["w"], batch[:, 0])
        return values.with_outputs(predictions=batch @ params["w"], targets=batch[:, 0])

    tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-3))
    task = ft.Task(loss_fn, tx, {"r2": ft.metrics.r2()}, policy="bf16")
    state = ft.init_state(task, {"w": jnp.zeros(4)}, mesh=ft.sharding.mesh(data=-1))
    with tempfile.TemporaryDirectory() as folder:
        stopping = ft.callbacks.EarlyStopping("loss")
        quiet = ft.callbacks.ProgressBar(console=Console(file=io.StringIO()))
        sys.setprofile(watch)
        try:
            ft.fit(
                task,
                state,
                x,
                steps=2,
                batch_size=4,
                callbacks=[stopping, quiet],
                run_dir=folder,
                progress=False,
            )
        finally:
            sys.setprofile(None)
    draw_way([(place, met[place]) for place in PLACES if place in met])


SAYS = {
    "data": "rows are picked; a short batch is padded with weight 0",
    "sharding": "the batch goes to the devices of the mesh",
    "run": "the loop: one dispatch of one or many steps",
    "step": "the compiled step: loss, gradient, one division by the weight, update",
    "precision": "parameters and batch in the type that is computed with",
    "losses": "one value per example, with its weight",
    "transforms": "gradients in, updates out",
    "metrics": "sums are added up on the device; read late, divided once",
    "checkpoint": "the state is copied, and written in the background",
    "callbacks": "see the row of an epoch, and may stop the run",
    "show": "the row is shown",
}


def draw_way(places: list[tuple[str, list[str]]]) -> None:
    """Boxes under one another, by hand in SVG, in the colours of the page."""
    width, row, top = 760, 62, 8
    out = []
    for i, (place, files) in enumerate(places):
        y = top + i * row
        inside = place in ("precision", "losses", "transforms", "metrics")
        x = 60 if inside else 20
        shown = ", ".join(file.rpartition("/")[2] for file in files[:9]) + (
            " …" if len(files) > 9 else ""
        )
        out.append(
            f'<rect x="{x}" y="{y}" width="{width - x - 20}" height="{row - 14}" rx="6" class="box"/>'
        )
        out.append(f'<text x="{x + 12}" y="{y + 20}" font-weight="bold">{place}</text>')
        out.append(f'<text x="{x + 110}" y="{y + 20}">{SAYS[place]}</text>')
        out.append(
            f'<text x="{x + 110}" y="{y + 38}" font-size="11" opacity="0.7">{shown}</text>'
        )
        if i:
            out.append(
                f'<path d="M40 {y - 14} v12" stroke="currentColor" marker-end="url(#down)"/>'
            )
    height = top + len(places) * row
    (HERE / "way_of_a_batch.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="The way of a batch through the library" font-family="system-ui, sans-serif" '
        'font-size="13" fill="currentColor"><style>.box { fill: none; stroke: currentColor; opacity: 0.55 }</style>'
        '<defs><marker id="down" viewBox="0 0 8 8" refX="4" refY="6" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0 L8 0 L4 8 z" transform="rotate(-90 4 4)" fill="currentColor"/></marker></defs>'
        + "\n".join(out)
        + "</svg>\n"
    )


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    plots()
    population()
    way_of_a_batch()
    print(
        "\n".join(sorted(path.name for path in HERE.iterdir())),
        jax.__version__,
        sep="\n",
    )
