"""The page that shows runs: every number where it belongs, readable in a real browser, whatever its width and light."""

import functools
import json
import os
import re
import shutil

import numpy as np
import pytest

import fntrain as ft
from fntrain import cli
from fntrain.run.lock import RunLock
from fntrain.run.writers import JSONLWriter
from fntrain.show.report.chart import MOST_POINTS, Series, chart
from fntrain.show.report.png import png
from fntrain.show.report.scale import Scale, around

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TX = "chain(scale_by_learning_rate(learning_rate=cosine(start=0.1, steps=40)))"


def write_run(path, rows, batch_size=8, status="done", rate=0.1, **more):
    """A run directory as `fit` leaves it, without a run."""
    path.mkdir(parents=True)
    identity = {"batch_size": batch_size, "seed": 0, "task": {"tx": {"learning_rate": rate}}}
    config = {
        "epochs": 3,
        "status": status,
        "task": {"tx": TX},
        "identity": identity,
        "parameters": 1234,
        **more,
    }
    (path / "config.json").write_text(json.dumps(config))
    with JSONLWriter(path / "metrics.jsonl") as writer:
        for row in rows:
            writer.write(row)
    return path


def rows_of(shift=0.0):
    """Three epochs: a validation inside the second, an interval, a confusion matrix, times."""
    for epoch in (1, 2, 3):
        if epoch == 2:
            yield {"epoch": 2, "step": 15, "loss": 0.6, "val_loss": 0.65 + shift, "unfinished": True}
        yield {
            "epoch": epoch,
            "step": 10 * epoch,
            "loss": 1 / epoch,
            "val_loss": 1.2 / epoch + shift,
            "val_accuracy": 0.5 + 0.1 * epoch,
            "val_accuracy_low": 0.45 + 0.1 * epoch,
            "val_accuracy_high": 0.55 + 0.1 * epoch,
            "val_confusion_matrix": [[8, 2], [epoch, 9]],
            "learning_rate": 0.1 / epoch,
            "step_time_ms": 4.0,
        }


def figures(page):
    return dict(
        re.findall(
            r"<figure class=\"chart\"><figcaption><h3>([^<]*)</h3>.*?(<svg class=\"plot\".*?</svg>)", page
        )
    )


def points(svg, kind="line"):
    """The places of each path of that kind, in the picture's units."""
    paths = re.findall(rf'<path class="{kind} [^"]*" d="M([^"Z]*)Z?"', svg)
    return [[tuple(map(float, p.split())) for p in path.split("L")] for path in paths]


def values(svg, ys):
    """Places as values, by the words beside two of the lines: what a reader does."""
    ticks = re.findall(r'y="([\d.]+)" text-anchor="end">([^<]*)</text>', svg)
    known = [(float(y) - 4, float(text)) for y, text in ticks if re.fullmatch(r"[\d.]+", text)]
    (y0, v0), (y1, v1) = known[0], known[-1]
    return [v0 + (y - y0) * (v1 - v0) / (y1 - y0) for y in ys]


def test_every_value_stands_where_its_axis_says(tmp_path):
    page = ft.tools.report([write_run(tmp_path / "one", rows_of())])
    drawn = figures(page)
    assert list(drawn) == ["loss", "accuracy", "learning rate", "schedule, as planned", "step time ms"]
    training, validation = points(drawn["loss"])
    np.testing.assert_allclose(
        values(drawn["loss"], [y for _, y in training]), [1, 0.6, 1 / 2, 1 / 3], atol=2e-3
    )
    np.testing.assert_allclose(
        values(drawn["loss"], [y for _, y in validation]), [1.2, 0.65, 0.6, 0.4], atol=2e-3
    )
    steps = np.interp([x for x, _ in validation], [validation[0][0], validation[-1][0]], [10, 30])
    np.testing.assert_allclose(steps, [10, 15, 20, 30], atol=0.02)
    (band,) = points(drawn["accuracy"], "band")
    found = values(drawn["accuracy"], [y for _, y in band])
    np.testing.assert_allclose(found, [0.65, 0.75, 0.85, 0.75, 0.65, 0.55], atol=2e-3)
    assert "0.8000 [0.7500, 0.8500]" in page  # in the summary, and among the chart's numbers
    assert "2,000" in page  # 8 examples in 4 ms
    (planned,) = points(drawn["schedule, as planned"])
    middle = values(drawn["schedule, as planned"], [planned[20][1]])[0]
    assert middle == pytest.approx(0.05, abs=1e-3)  # half a cosine: 0.1 (1 + cos(pi / 2)) / 2


PARTS = [
    {
        "started": "2026-01-01 10:00",
        "from": 0,
        "to": 20,
        "ended": "killed",
        "seconds": {"step": 6.0, "compile": 2.0},
        "lost": {"step": 1.0},
        "lost_steps": 4,
    },
    {
        "started": "2026-01-01 11:00",
        "from": 16,
        "to": 30,
        "ended": "done",
        "seconds": {"step": 3.0, "data": 1.0},
    },
]


def test_where_the_time_went_is_summed_over_the_parts(tmp_path):
    rows = [{"epoch": 1, "step": 30, "loss": 1.0}]
    page = ft.tools.report([write_run(tmp_path / "one", rows, parts=PARTS)])
    shares = dict(
        re.findall(r'<th scope="row">([^<]*)</th><td class="bar">.*?<td>([\d.]+)&nbsp;%</td>', page)
    )
    assert shares == {"step": "66.7", "compile": "16.7", "data": "8.3", "lost to kills": "8.3"}
    assert "<td>27</td>" in page  # examples a second: 8 rows, 34 steps in 10 s, compiling aside
    assert "<td>1.0 s</td>" in page  # of data
    assert re.search(r"<td>killed</td><td>4</td>", page)


def rates_of(page):
    """The column of examples a second, as numbers."""
    rows = re.findall(r"<td>[^<]* ms</td><td>([\d,]*)</td><td>(?:the median|steps)", page)
    return [int(row.replace(",", "")) if row else None for row in rows]


GROWING = {"cut": [[0, 0, 8], [2, 0, 16]], "examples": 80}  # ten steps an epoch, and then five


def test_examples_a_second_of_batches_that_grow(tmp_path):
    part = {"from": 0, "to": 30, "seconds": {"step": 4.0, "data": 1.0}}
    rows = [{"epoch": i, "step": s, "loss": 1.0} for i, s in enumerate((10, 20, 25, 30), 1)]
    of_parts = write_run(tmp_path / "one", rows, {"0": 8, "2": 16}, parts=[part], **GROWING)
    assert rates_of(ft.tools.report([of_parts])) == [4 * 80 / 5]
    # What was run twice was measured twice: steps 20 to 25, of five times 16 rows.
    again = [{**part, "to": 25}, {"from": 20, "to": 30, "seconds": {"step": 5.0}}]
    twice = write_run(tmp_path / "two", rows, {"0": 8, "2": 16}, parts=again, **GROWING)
    assert rates_of(ft.tools.report([twice])) == [5 * 80 / 10]
    # By epoch: 8 rows in 2 ms, 8 in 1 ms, 16 in 4 ms, 16 in 16 ms.
    times = [{**row, "step_time_ms": ms} for row, ms in zip(rows, (2.0, 1.0, 4.0, 16.0))]
    of_epochs = write_run(tmp_path / "three", times, {"0": 8, "2": 16}, **GROWING)
    assert rates_of(ft.tools.report([of_epochs])) == [4000]
    # A state that had 100 steps behind it, and a run that did not say how many examples there are.
    late = {**part, "from": 100, "to": 130}
    rows = [{**row, "step": row["step"] + 100} for row in rows]
    later = write_run(tmp_path / "four", rows, {"0": 8, "2": 16}, parts=[late], **GROWING)
    assert rates_of(ft.tools.report([later])) == [4 * 80 / 5]
    times = [{**row, "step": row["step"] + 100} for row in times]
    timed = write_run(tmp_path / "timed", times, {"0": 8, "2": 16}, parts=[late], **GROWING)
    assert rates_of(ft.tools.report([timed])) == [4000]
    before = write_run(tmp_path / "five", rows, {"0": 8, "2": 16}, parts=[late], cut=GROWING["cut"])
    assert rates_of(ft.tools.report([before])) == [None]


def test_a_run_whose_batch_grows_says_what_it_takes(tmp_path):
    x = np.linspace(-1, 1, 48, dtype=np.float32)
    task = ft.Task(
        lambda params, batch, ctx: ft.losses.mse(batch * params["w"], batch), ft.optimizers.sgd(0.1)
    )
    state = ft.init_state(task, {"w": np.float32(0)})
    place, sizes = tmp_path / "run", {0: 4, 1.5: 8}
    ft.fit(task, state, x, epochs=3, batch_size=sizes, run_dir=place, progress=False)
    (part,) = json.loads((place / "config.json").read_text())["parts"]
    taken = part["seconds"]["step"] + part["seconds"]["data"]
    (rate,) = rates_of(ft.tools.report([place]))
    assert rate == pytest.approx(3 * 48 / taken, abs=1)
    same = ft.fit(task, state, x, epochs=3, batch_size=sizes, run_dir=tmp_path / "again", progress=False)
    assert ft.tools.compare([place, tmp_path / "again"]).differences == []
    assert same.history.epochs == 3


def test_the_page_says_what_a_diagnosis_finds(tmp_path):
    rows = [{"epoch": i, "step": 8 * i, "loss": 1.0 / i, "val_loss": 0.5 + (i - 2) ** 2} for i in range(1, 5)]
    page = ft.tools.report([write_run(tmp_path / "one", rows)])
    section = page.partition("Diagnosis</h2>")[2].partition("</section>")[0]
    assert 'class="finding">validation_gap: `val_loss` is 800% above its best' in section
    assert "a quarter above its best: from 0.625" in section.replace("0.6250", "0.625")
    assert re.search(r'scope="row">dead_units</th><td>it takes a step: give `task=`', section)
    page = ft.tools.report([write_run(tmp_path / "two", [{**row, "val_loss": row["loss"]} for row in rows])])
    assert "Nothing wrong was found" in page


def test_a_gap_is_a_gap_and_a_lonely_value_a_dot():
    svg = chart("x", [Series("s", [1, 2, 3, 4], [1.0, None, 3.0, float("nan")])], x_label="step")
    assert [len(path) for path in points(svg)] == [1, 1]
    assert svg.count("<circle") == 2
    assert "NaN" not in svg.replace("no finite", "")


def test_no_peak_is_lost_in_a_long_line():
    y = np.sin(np.arange(20_000) / 900)
    y[12_345], y[777] = 9.0, -9.0
    svg = chart("x", [Series("s", list(range(20_000)), y.tolist())], x_label="step")
    (line,) = points(svg)
    assert len(line) <= MOST_POINTS
    high, low = min(y for _, y in line), max(y for _, y in line)
    scale = around([-9.0, 9.0], 206, 10)
    assert (high, low) == (round(scale(9.0), 1), round(scale(-9.0), 1))


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0, 1, False), (0.0312, 0.0317, False), (-3, 7e6, False), (1e-4, 30, True), (2, 9, True)],
)
def test_ticks_are_round_within_and_few(low, high, log):
    ticks = Scale(low, high, 0, 1, log).ticks(6)
    assert 2 <= len(ticks) <= 6
    assert all(low <= t <= high for t in ticks)
    for tick in ticks:
        assert len(f"{tick:.6g}".split("e")[0].replace(".", "").replace("-", "").strip("0")) <= 4
    if not log:
        np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_runs_of_unlike_batches_are_drawn_over_examples_and_differ_where_they_do(tmp_path):
    one = write_run(tmp_path / "one", rows_of())
    two = write_run(tmp_path / "two", rows_of(0.1), batch_size=16, rate=0.2)
    page = ft.tools.report([one, two])
    assert ">examples</text>" in figures(page)["loss"]
    assert "one and two" in page
    compared = ft.tools.compare([one, two])
    assert compared.differences == [("batch_size", ["8", "16"]), ("tx.learning_rate", ["0.1", "0.2"])]
    facts = dict(compared.facts)
    assert facts["val_loss, best"] == ["0.4000 at step 30", "0.5000 at step 30"]
    assert facts["val_accuracy, last"] == ["0.8000 [0.7500, 0.8500]"] * 2
    assert ft.tools.compare([one, one]).differences == []
    same = write_run(tmp_path / "other" / "one", rows_of())
    assert ft.tools.compare([one, same]).names[1] == "other/one"  # told apart by what tells them apart


def test_what_a_run_is_called_is_text_and_no_markup(tmp_path):
    name = "<script>alert('x')&"
    rows = [{"epoch": 1, "step": 1, "loss": 1.0, "<b>x</b>": 2.0}]
    page = ft.tools.report([write_run(tmp_path / name, rows, note="</script><img src=x>")])
    for markup in ("<script>alert", "<b>x", "<img"):
        assert markup not in page
    assert page.count("<script") == page.count("</script>")


def test_the_page_asks_for_nothing(tmp_path):
    page = ft.tools.report([write_run(tmp_path / "one", rows_of())])
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:,)[^"']*|url\(|@import|https?:""", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "No epoch has ended yet"),
        ([{"epoch": 1, "step": 3, "loss": float("nan")}], "No epoch has ended yet"),
    ],
)
def test_a_run_that_has_nothing_yet_has_a_page(tmp_path, rows, said):
    page = ft.tools.report([write_run(tmp_path / "new", rows, status="running")])
    assert said in page
    assert "killed" in page  # it says it is running, and nobody holds it


def test_a_run_that_says_it_runs_does_so_while_somebody_holds_it(tmp_path):
    run = write_run(tmp_path / "one", rows_of(), status="running")
    lock = RunLock(run)
    assert ft.tools.read_run(run).status == "running"
    lock.release()
    assert ft.tools.read_run(run).status == "killed"


def test_mistakes_are_named(tmp_path):
    run = write_run(tmp_path / "one", rows_of())
    with pytest.raises(ft.ConfigError, match="`runs` must be a list"):
        ft.tools.report(run)  # type: ignore[arg-type]
    with pytest.raises(ft.ConfigError, match="`runs` must hold at least one"):
        ft.tools.compare([])
    with pytest.raises(ft.ConfigError, match=r"`out` must be a file.*report\.html"):
        ft.tools.report([run], tmp_path)
    with pytest.raises(ft.ConfigError, match="holds no run"):
        ft.tools.report([tmp_path])


def test_the_commands(tmp_path, capsys):
    one = write_run(tmp_path / "runs" / "one", rows_of())
    two = write_run(tmp_path / "runs" / "deep" / "two", rows_of(0.1), status="interrupted")
    broken = write_run(tmp_path / "runs" / "broken", [])
    (broken / "metrics.jsonl").write_text("{no json\n")
    os.utime(two / "config.json", (4e9, 4e9))  # the latest
    out = tmp_path / "page.html"
    assert cli.main(["report", str(one), str(two), "--out", str(out), "--title", "Two runs"]) == 0
    assert "<h1>Two runs</h1>" in out.read_text()
    assert cli.main(["compare", str(one), str(two)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"val_loss, best +0.4000 at step 30 +0.5000 at step 30", text)
    assert cli.main(["runs", str(tmp_path / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["deep/two", "one", "broken"]
    assert re.search(r"one +done +3 +30 +val_loss 0.4000 +30", lines[3])
    assert "interrupted" in lines[2]
    assert "damaged" in lines[4]
    assert cli.main(["runs", str(tmp_path / "nowhere")]) == 2
    assert cli.main(["compare", str(tmp_path)]) == 2


# In a browser.


def keep_samples(run):
    (run / "samples" / "says").mkdir(parents=True)
    (run / "samples" / "says" / "00000030.txt").write_text("a text\n" + "that is long " * 40)
    (run / "samples" / "draws").mkdir()
    (run / "samples" / "draws" / "00000030.png").write_bytes(png(np.linspace(0, 1, 64).reshape(8, 8)))


@functools.cache
def browser_path():
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright to drive a browser with")
    if browser_path() is None:
        pytest.skip(f"no browser on the path, of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield found
        found.close()


# What is wrong with a page as it is shown: asked of the browser itself.
LOOK = """() => {
  const bad = [], wide = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > wide) bad.push("wider than the window");
  const shown = (x) => { const b = x.getBoundingClientRect(); return b.width > 0 && b.height > 0; };
  for (const plot of document.querySelectorAll(".plot")) {
    if (!shown(plot) || plot.getBoundingClientRect().right > wide) bad.push("a picture is not there");
    for (const path of plot.querySelectorAll(".line"))
      if (/NaN|Infinity|undefined/.test(path.getAttribute("d"))) bad.push("a line leads nowhere");
    if (![...plot.querySelectorAll(".line")].some((x) => x.getTotalLength() > 50)) bad.push("a picture without a line");
    if (!plot.getAttribute("aria-label") || plot.getAttribute("role") !== "img") bad.push("a picture without words");
    const scale = plot.getBoundingClientRect().width / plot.viewBox.baseVal.width;
    const size = parseFloat(getComputedStyle(plot.querySelector(".tick")).fontSize) * scale;
    if (size < 10) bad.push(`letters of ${size} pixels`);
  }
  const linear = (x) => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map((x) => linear(x / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const pale = (selector, property, least) => {
    for (const x of document.querySelectorAll(selector)) {
      const [a, b] = [light(getComputedStyle(x)[property]), paper].sort((a, b) => b - a);
      if ((a + .05) / (b + .05) < least) bad.push(`pale ${selector}: ${x.textContent}`);
    }
  };
  pale("h1, h2, h3, p, th, td:not(.deep), a, summary, li", "color", 4.5);
  pale(".tick", "fill", 4.5);
  pale(".plot .line", "stroke", 3);
  for (const x of document.querySelectorAll("img"))
    if (!x.complete || !x.naturalWidth || !x.alt) bad.push("an image is not there");
  let level = 0;
  for (const h of document.querySelectorAll("h1, h2, h3")) {
    if (+h.tagName[1] > level + 1) bad.push(`a heading skips a level: ${h.textContent}`);
    level = +h.tagName[1];
  }
  const ids = [...document.querySelectorAll("[id]")].map((x) => x.id);
  if (new Set(ids).size !== ids.length) bad.push("an id twice");
  return [bad, document.querySelectorAll(".plot").length, document.querySelectorAll(".matrix").length, paper];
}"""


def looked_at(browser, path, width, scheme, use=None):
    """`(what is wrong, pictures, matrices, how light it is)` of a page, at that width and in that light."""
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    problems, asked = [], []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    found, *counts = tab.evaluate(LOOK)
    if use is not None:
        use(tab)
    tab.close()
    problems += [url for url in asked if not url.startswith((path.as_uri(), "data:"))]
    return problems + found, *counts


def read_by_keyboard(tab):
    """Walk to the first chart by the tabulator, along it by arrows, and fold its numbers out."""
    plot, said = tab.locator(".plot").first, tab.locator("figure.chart output").first
    for _ in range(30):
        tab.keyboard.press("Tab")
        if plot.evaluate("x => x === document.activeElement"):
            break
    tab.keyboard.press("End")
    assert said.text_content() == "step 30\ntraining 0.3333\nvalidation 0.4000"
    tab.keyboard.press("ArrowLeft")
    assert said.text_content() == "step 20\ntraining 0.5000\nvalidation 0.6000"
    assert not tab.locator("line.cursor").first.evaluate("x => x.hasAttribute('hidden')")
    tab.keyboard.press("Escape")
    assert said.text_content() == ""
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert tab.locator("figure.chart details").first.locator("tbody tr").count() == 4
    assert tab.locator("figure.chart details td").first.is_visible()


def test_a_browser_shows_all_of_it_at_every_width_and_in_every_light(tmp_path, browser):
    path = tmp_path / "one.html"
    one = write_run(tmp_path / "one", rows_of(), parts=PARTS)
    keep_samples(one)
    ft.tools.report([one], path)
    problems, pictures, matrices, dark = looked_at(browser, path, 1280, "dark", read_by_keyboard)
    assert (problems, pictures, matrices) == ([], 5, 1)
    both = tmp_path / "both.html"
    clipped = [{**row, "clip_factor": 0.1} for row in rows_of(0.1)]  # a curve, and a picture of the diagnosis
    ft.tools.report([tmp_path / "one", write_run(tmp_path / ("a" * 30), clipped, batch_size=16)], both)
    problems, pictures, matrices, light = looked_at(browser, both, 375, "light")
    assert (problems, pictures, matrices) == ([], 6, 2)
    assert looked_at(browser, both, 375, "dark")[0] == [] == looked_at(browser, path, 1280, "light")[0]
    assert dark < 0.05
    assert light > 0.9


def test_a_browser_finds_what_is_broken(tmp_path, browser):
    path = tmp_path / "one.html"
    page = ft.tools.report([write_run(tmp_path / "one", rows_of())], path)
    path.write_text(
        page.replace('class="line c0" d="M', 'class="line c0" d="MNaN NaN ', 1)
        .replace("<main id", '<img src="http://nowhere.invalid/x.png"><h4>x</h4><main id')
        .replace("--quiet: #52606d", "--quiet: #ccd")
        .replace("max-width: 1320px", "min-width: 1320px")
    )
    problems, *_ = looked_at(browser, path, 375, "light")
    text = " ".join(problems)
    for wrong in ("leads nowhere", "pale .tick", "wider than", "Content Security Policy"):
        assert wrong in text


def test_what_is_named_as_one_likes_is_shown(tmp_path):
    """Last values of metrics with names of their own, a matrix of counts under any name, a loss that is no number."""
    metrics = {"how often": ft.metrics.accuracy(), "cm": ft.metrics.confusion_matrix(2)}

    def loss_fn(p, b, ctx):
        z = b[0] * p["w"]
        return ft.losses.cross_entropy(z, b[1]).with_outputs(logits=z, labels=b[1])

    data = (np.float32([[1, 0], [0, 1], [1, 0], [0, 1]]), np.int32([0, 1, 1, 1]))
    for name, w in (("well", 1.0), ("lost", np.nan)):
        task = ft.Task(loss_fn, ft.optimizers.sgd(0.1), metrics)
        state = ft.init_state(task, {"w": np.float32(w)})
        ft.fit(task, state, data, epochs=1, batch_size=4, run_dir=tmp_path / name, progress=False)
    facts = dict(ft.tools.compare([tmp_path / "well", tmp_path / "lost"]).facts)
    assert facts["how often, last"][0] == "0.7500"
    assert facts["loss, last"][1] == "-"  # no number, as in the file
    ft.tools.report([tmp_path / "well"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "rows are true classes" in page
