"""The command line: what the demo leaves behind, what a mistake costs, what an interrupt loses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import fntrain as ft
from fntrain import cli, demo

COMMAND = [sys.executable, "-W", "error", "-c", "import sys; from fntrain.cli import main; sys.exit(main())"]


def start(*arguments, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, **pipes, text=True, **options)


def run(*arguments, **options):
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def one_line(text):
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of the demo, as a user starts it, into a pipe: (directory, standard output)."""
    folder = tmp_path_factory.mktemp("demo")
    status, out, err = run("demo", cwd=folder)
    assert (status, err) == (0, "")
    (run_dir,) = (folder / "runs").iterdir()
    return run_dir, out


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Three epochs in this process, to be copied."""
    run_dir = tmp_path_factory.mktemp("short") / "run"
    assert cli.main(["demo", "--epochs", "3", "--no-progress", "--out", str(run_dir)]) == 0
    return run_dir


@pytest.fixture
def copied(short, tmp_path):
    return Path(shutil.copytree(short, tmp_path / "run"))


def test_the_demo_learns(finished):
    run_dir, out = finished
    last = rows(run_dir)[-1]
    assert last["epoch"] == 30
    assert last["val_accuracy"] >= 0.96
    assert f"validation accuracy {100 * last['val_accuracy']:.2f} %" in out
    # The two ways to say it agree: the confusion matrix of the 360 validation scans.
    matrix = np.array(last["val_confusion_matrix"])
    assert matrix.sum() == 360
    assert np.trace(matrix) / 360 == pytest.approx(last["val_accuracy"], abs=1e-6)


def test_the_demo_leaves_a_run(finished):
    run_dir, _ = finished
    assert re.fullmatch(r"digits-\d{8}-\d{6}", run_dir.name)
    there = {path.name for path in run_dir.iterdir() if not path.name.startswith(".")}
    files = {"config.json", "metrics.jsonl", "metrics.csv"}
    assert files | {"checkpoints", "learning_curves.png", "confusion_matrix.png"} <= there
    for name in ("learning_curves.png", "confusion_matrix.png"):
        assert (run_dir / name).read_bytes().startswith(b"\x89PNG")
    config = json.loads((run_dir / "config.json").read_text())
    assert config["demo"] == {"epochs": 30, "batch_size": 32, "seed": 0, "accumulate": 1, "model": "plain"}
    assert len((run_dir / "metrics.csv").read_text().splitlines()) == 31


def test_into_a_pipe_go_plain_lines_one_an_epoch(finished):
    run_dir, out = finished
    assert "\x1b" not in out
    assert "\r" not in out
    assert re.findall(r"^epoch +(\d+)/30 .*val_accuracy", out, re.M) == [str(n) for n in range(1, 31)]
    shown = run_dir.relative_to(run_dir.parent.parent)
    for line in (str(shown), f"  fntrain inspect {shown}", f"  fntrain demo --resume {shown} --epochs 40"):
        assert line in out.splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--epochs", "0"],
        ["demo", "--epochs", "three"],
        ["demo", "--batch-size", "1.5"],
        ["demo", "--seed", "-1"],
        ["demo", "--seed", str(2**32)],  # a key keeps 32 bits: the seed would pass for 0
        ["demo", "--accumulate", ""],
        ["demo", "--epoch", "3"],
        ["demo", "--model", "keras"],
        ["demo", "surplus"],
        ["plot"],
        ["inspect", "a", "b"],
        ["train"],
        ["--frobnicate"],
    ],
    ids=" ".join,
)
def test_a_bad_option_is_one_line_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert one_line(err).startswith("fntrain")


def refused(capsys, *arguments):
    """The one line that a command ends with, its status being 2."""
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    return one_line(capsys.readouterr().err)


def test_what_a_directory_lacks_is_said_in_one_line(capsys, tmp_path):
    for command in (["plot"], ["inspect"], ["demo", "--resume"]):
        assert "no directory" in refused(capsys, *command, tmp_path / "nowhere")
        assert "holds no run" in refused(capsys, *command, tmp_path)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.json").write_text("{}")
    assert "nothing to draw yet" in refused(capsys, "plot", begun)
    assert "not one of the demo" in refused(capsys, "demo", "--resume", begun)
    (begun / "config.json").write_text("{")
    assert "config.json is damaged" in refused(capsys, "inspect", begun)
    (begun / "metrics.jsonl").write_text('{"epoch": 1}\noops\n')
    assert "metrics.jsonl, line 2" in refused(capsys, "plot", begun)


def test_out_must_be_free(capsys, copied, tmp_path):
    before = (copied / "config.json").read_bytes()
    assert f"--resume {copied}" in refused(capsys, "demo", "--out", copied)
    assert (copied / "config.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(capsys, "demo", "--out", tmp_path / "file")
    assert "file" in refused(capsys, "demo", "--out", tmp_path / "file" / "below")


def test_a_resume_takes_the_options_of_its_run(capsys, copied):
    for option, value in (("--batch-size", 16), ("--seed", 1), ("--accumulate", 2)):
        line = refused(capsys, "demo", "--resume", copied, option, value)
        assert line.startswith(f"fntrain demo: {option} {value}: the run was started with")
    assert "behind it" in refused(capsys, "demo", "--resume", copied, "--epochs", 2)
    assert "--out" in refused(capsys, "demo", "--resume", copied, "--out", copied / "elsewhere")
    before = rows(copied)
    # The saved options, said again, contradict nothing.
    again = ["--batch-size", "32", "--out", str(copied), "--epochs", "5"]
    assert cli.main(["demo", "--resume", str(copied), *again]) == 0
    after = rows(copied)
    assert after[:3] == before
    assert [row["epoch"] for row in after] == [1, 2, 3, 4, 5]
    # Past its end the schedule holds its last value.
    assert after[4]["learning_rate"] == after[3]["learning_rate"] == pytest.approx(0.001)
    # The options of the schedule stay those of the first start, and the total is remembered.
    assert cli.main(["demo", "--resume", str(copied)]) == 0
    assert len(rows(copied)) == 5
    assert json.loads((copied / "config.json").read_text())["demo"]["epochs"] == 3


@pytest.mark.slow
def test_an_interrupt_loses_nothing(finished, tmp_path):
    with start("demo", "--out", "cut", cwd=tmp_path) as process:
        for line in process.stdout:
            if line.startswith("epoch  3/30"):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert one_line(err).startswith("fntrain: SIGINT: the run ends at the next step's edge, and is saved in ")
    assert "fntrain demo --resume cut" in out
    assert 3 <= len(rows(tmp_path / "cut")) < 30
    status, out, err = run("demo", "--resume", "cut", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert rows(tmp_path / "cut") == rows(finished[0])  # bitwise, matrices included


def test_an_interrupt_while_all_is_prepared_is_no_traceback(monkeypatch, capsys, tmp_path):
    original = demo.init_params

    def init_params(key):
        signal.raise_signal(signal.SIGINT)  # while init_state compiles: to break in there may crash
        return original(key)

    monkeypatch.setattr(demo, "init_params", init_params)
    monkeypatch.setattr(demo, "network", demo.network.__wrapped__)  # which keeps what it was made with
    assert cli.main(["demo", "--out", str(tmp_path / "run")]) == 130
    assert one_line(capsys.readouterr().err) == "fntrain demo: interrupted\n"
    assert not (tmp_path / "run").exists()


def test_accumulation(capsys, tmp_path):
    arguments = ["--accumulate", "3", "--epochs", "2", "--batch-size", "36", "--no-progress"]
    assert cli.main(["demo", *arguments, "--out", str(tmp_path / "run")]) == 0
    saved = ft.Checkpointer(tmp_path / "run" / "checkpoints")
    task = demo.make_task(demo.Options(epochs=2, batch_size=36, accumulate=3), 1437)
    state = saved.restore(ft.init_state(task, demo.init_params))
    assert int(state.step) == 80  # 40 batches an epoch
    assert int(state.updates) == 26  # 80 // 3, and two gradients in the open window
    # The schedule is as long as the updates are many: it has come to its end with the run.
    assert rows(tmp_path / "run")[-1]["learning_rate"] == pytest.approx(0.001, rel=0.5)


@pytest.mark.parametrize("name", [name for name in demo.MODELS if name != "plain"])
def test_the_network_is_the_same_whatever_it_is_made_of(name, capsys, tmp_path):
    plain, made = (demo.network(n).init(jax.random.key(0)) for n in ("plain", name))
    assert ft.tree.size(made) == ft.tree.size(plain) == 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    batch = {"image": np.random.default_rng(0).random((36, 64), np.float32), "label": np.arange(36) % 10}
    losses = []
    for n in ("plain", name):
        task = demo.make_task(demo.Options(epochs=1, batch_size=36, model=n), 36 * 4)
        state, history = ft.init_state(task, demo.network(n).init), []
        for _ in range(3):
            state, metrics = ft.train_step(task, state, batch)
            history.append(float(ft.compute_metrics(task, metrics)["loss"]))
        losses.append(history)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)  # decay and all
    assert losses[0][2] < losses[0][0]
    if name == "nnx":  # as a user starts it
        run_dir = str(tmp_path / "run")
        arguments = ["--epochs", "1", "--no-progress", "--batch-size", "480"]
        assert cli.main(["demo", "--model", name, *arguments, "--out", run_dir]) == 0
        assert "17,226 parameters" in capsys.readouterr().out
        line = refused(capsys, "demo", "--resume", run_dir, "--model", "linen")
        assert "--model linen: the run was started with nnx" in line


def test_equal_options_make_equal_tasks():
    make = lambda **options: demo.make_task(demo.Options(**options), 1437)
    assert make() == make()
    assert make(accumulate=2) == make(accumulate=2) != make()
    assert make(epochs=31) != make()
    assert make(model="linen") == make(model="linen") != make()


def test_the_split_is_stratified_and_fixed():
    data, validation = demo.load()
    for part, rows_ in ((data, 1437), (validation, 360)):
        assert part["image"].shape == (rows_, 64)
        assert part["image"].dtype == np.float32
        assert part["image"].min() == 0
        assert part["image"].max() == 1
    counts = [np.bincount(part["label"], minlength=10) for part in (data, validation)]
    assert np.abs(counts[1] - 0.2 * (counts[0] + counts[1])).max() < 1
    assert all((a["image"] == b["image"]).all() for a, b in zip(demo.load(), (data, validation)))


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib", "equinox"])
def test_a_missing_extra_is_named(missing, monkeypatch, capsys, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    run_dir = tmp_path / "run"
    if missing == "sklearn":
        assert 'pip install "fntrain[examples]"' in refused(capsys, "demo", "--out", run_dir)
        assert not run_dir.exists()
    elif missing == "equinox":
        demo.network.cache_clear()
        line = refused(capsys, "demo", "--model", "equinox", "--out", run_dir)
        assert '--model equinox: equinox is not installed: `pip install "fntrain[models]"`' in line
        assert not run_dir.exists()
    else:  # trains all the same
        assert cli.main(["demo", "--epochs", "1", "--no-progress", "--out", str(run_dir)]) == 0
        out, err = capsys.readouterr()
        assert "validation accuracy" in out
        assert ".png" not in out
        assert 'pip install "fntrain[plot]"' in one_line(err)
        assert cli.main(["plot", str(run_dir)]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("loss")
        assert 'pip install "fntrain[plot]"' in err


def test_plot_draws_any_run(capsys, tmp_path):
    run_dir = tmp_path / "a run"
    run_dir.mkdir()
    lines = [{"epoch": 1, "loss": 0.5, "val_loss": None}, {"epoch": 2, "loss": 0.25, "val_loss": 0.3}]
    torn = '{"epoch": 3, "lo'  # a run that goes on while it is drawn
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    assert cli.main(["plot", str(run_dir)]) == 0
    curves, matrix = run_dir / "learning_curves.png", run_dir / "confusion_matrix.png"
    assert capsys.readouterr().out.splitlines() == [str(curves)]
    assert curves.read_bytes().startswith(b"\x89PNG")

    # Of several matrices the validation's is drawn.
    lines[1] |= {"confusion": [[1, 0], [0, 1]], "val_confusion": [[3, 1], [0, 4]]}
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = []
    from fntrain.show import plots

    original = plots.confusion_matrix
    plots.confusion_matrix = lambda x, **options: (drawn.append(x), original(x, **options))[1]
    try:
        assert cli.main(["plot", str(run_dir)]) == 0
    finally:
        plots.confusion_matrix = original
    assert drawn == [[[3, 1], [0, 4]]]
    assert capsys.readouterr().out.splitlines() == [str(curves), str(matrix)]
    assert matrix.read_bytes().startswith(b"\x89PNG")


def test_inspect_shows_what_there_is(finished, capsys):
    run_dir, _ = finished
    assert cli.main(["inspect", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert not re.search(r" $", out, re.M)
    lines = [line.split() for line in out.splitlines()]
    # Parameters: 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10.
    assert ["layers/0/kernel", "[64,", "128]", "float32", "8,192"] in lines
    assert ["total", "17,226"] in lines
    # Metrics of the last epoch, train and validation.
    last = rows(run_dir)[-1]
    (accuracy,) = [line for line in lines if line[:1] == ["accuracy"]]
    assert [float(x) for x in accuracy[1:]] == pytest.approx(
        [last["accuracy"], last["val_accuracy"]], abs=1e-3
    )
    # Checkpoints: those on disk, the best by val_loss among all epochs, the newest.
    steps = sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir())
    assert [int(line[0]) for line in lines if line and line[0] in map(str, steps)] == steps
    best = min(rows(run_dir), key=lambda row: row["val_loss"])
    marked = [line for line in lines if line and line[-1] in ("best", "best,", "newest")]
    assert [str(best["step"]), str(best["epoch"])] in [line[:2] for line in marked if "best" in line[3]]
    assert marked[-1][:2] == ["1350", "30"]
    assert "add_weight_decay(rate=0.01, mask='kernel')" in out


def test_inspect_on_a_terminal_uses_styles(short, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.main(["inspect", str(short)]) == 0
    out = capsys.readouterr().out
    assert "\x1b[1m" in out
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert max(map(len, plain.splitlines())) <= 60


def test_inspect_a_run_that_has_just_begun(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"epochs": 7, "jax": "1.2.3"}))
    assert cli.main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "0 of 7" in out
    assert "no checkpoint yet" in out
    assert not list(tmp_path.glob("checkpoints"))  # looking leaves nothing behind


def test_a_damaged_checkpoint_is_said_in_one_line(copied):
    newest = max((copied / "checkpoints").iterdir(), key=lambda path: int(path.name))
    (newest / "meta" / "checkpoint.json").write_text("{}")
    command = [part for part in COMMAND if part not in ("-W", "error")]
    done = subprocess.run([*command, "inspect", str(copied)], capture_output=True, text=True)
    assert done.returncode == 0
    assert "passing over a damaged checkpoint" in one_line(done.stderr)
    assert "total" in done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="pipes as on POSIX")
def test_a_reader_that_goes_away_is_no_traceback(finished):
    with start("inspect", finished[0]) as process:
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=60)
    assert err == ""
    assert process.returncode == 141


def test_help_and_version(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("demo", "plot", "inspect"))
    for arguments, said in (
        (["--version"], f"fntrain {ft.__version__}"),
        (["demo", "--help"], "--accumulate"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0
        assert said in capsys.readouterr().out


def test_help_loads_no_more_than_the_library(tmp_path):
    code = "import sys; from fntrain.cli import main; main([]); print(*sys.modules)"
    began = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - began < 30
    assert not {"rich", "orbax", "matplotlib", "sklearn", "flax"} & set(out.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dmo"], "fntrain: argument COMMAND: must be one of demo, .*got 'dmo'; did you mean 'demo'"),
        (
            ["demo", "--epoch", "3"],
            "fntrain demo: unrecognized arguments: --epoch 3; did you mean '--epochs'",
        ),
        (["demo", "--sed=3"], "unrecognized arguments: --sed=3; did you mean '--seed'"),
        (
            ["demo", "--model", "linnen"],
            "must be one of plain, nnx, linen, equinox, got 'linnen'; did you mean 'linen'",
        ),
        (["replay", "x", "--task", "y:z", "--taks", "y"], "fntrain replay: .*did you mean '--task'"),
        (["--versoin"], "fntrain: unrecognized arguments: --versoin; did you mean '--version'"),
        (["inspect", "a", "b"], r"fntrain inspect: unrecognized arguments: b \(see"),
    ],
)
def test_what_was_meant_is_said(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert re.search(words, said)
    assert said.count("\n") == 1


def test_inspect_says_of_a_run_that_nobody_holds_that_it_was_killed(copied, capsys):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "status": "running"}))
    assert cli.main(["inspect", str(copied)]) == 0
    assert re.search(r"status +killed", capsys.readouterr().out)
