"""What a run directory says of its run: which column its best is of, and which way is better, for all who show it."""

import json

import numpy as np

import fntrain as ft
from fntrain import cli
from fntrain.run.record import read_run

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32)).astype(np.float32)


def loss_fn(params, batch, ctx):
    predictions = batch[0] @ params["w"]
    return ft.losses.mse(predictions, batch[1]).with_outputs(predictions=predictions, targets=batch[1])


# By their names less of the one is better and more of the other; the metrics say more, and nothing.
METRICS = {"error": ft.metrics.r2(), "score": ft.metrics.mean("predictions")}
RATE = ft.schedules.cosine(0.25, 400)
TASK = ft.Task(loss_fn, ft.optimizers.sgd(RATE, momentum=0.9), METRICS)  # it overshoots


def run(folder, **options):
    state = ft.init_state(TASK, {"w": np.zeros(3, np.float32)})
    options = {"epochs": 6, "batch_size": 8, "progress": False, "validation_data": (X[:5], Y[:5]), **options}
    return ft.fit(TASK, state, (X, Y), run_dir=folder, keep_best="val_error", **options)


def test_the_best_is_what_the_run_was_told_and_a_resume_says_where_it_stands(tmp_path, capsys):
    result = run(tmp_path / "one")
    rows = result.history.rows()
    best = max(rows, key=lambda row: row["val_error"])
    assert best["step"] not in (rows[-1]["step"], min(rows, key=lambda row: row["val_error"])["step"])
    record = read_run(tmp_path / "one")
    assert record.ranked == ("val_error", "max")
    assert record.best_checkpoint == best["step"] == result.best.row["step"]
    assert record.best("val_error") == best
    assert record.best("val_score") is None  # which of its values are better nobody has said
    assert record.best("val_loss") == min(rows, key=lambda row: row["val_loss"])

    assert cli.main(["inspect", str(tmp_path / "one")]) == 0
    shown = capsys.readouterr().out.partition("checkpoints\n")[2].splitlines()
    assert shown[0].split() == ["step", "epoch", "val_error"]
    assert [line.split()[0] for line in shown if " best" in line] == [str(best["step"])]
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert f"val_error {best['val_error']:.4f}" in capsys.readouterr().out
    facts = dict(ft.tools.compare([tmp_path / "one"]).facts)
    assert facts["val_error, best"] == [f"{best['val_error']:.4f} at step {best['step']}"]
    assert "val_score, best" not in facts
    page = ft.tools.report([tmp_path / "one"])
    assert f'<th scope="row">{best["step"]}</th><td>{best["epoch"]}</td>' in page
    assert '<th scope="col">val_error</th>' in page

    run(tmp_path / "one", epochs=7, resume=True, verbose=True)
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines == [
        f"resumed     at step 18 of 21 from {tmp_path / 'one' / 'checkpoints' / '18'}",
        f"schedule    learning_rate={RATE!r}, at update 18 of 400",
    ]

    # A run of an earlier version has not kept what its metrics say: names decide, and `val_loss` ranks.
    path = tmp_path / "one" / "config.json"
    config = {
        k: v for k, v in json.loads(path.read_text()).items() if k not in ("best", "better", "prefixes")
    }
    path.write_text(json.dumps(config))
    assert read_run(tmp_path / "one").ranked == ("val_loss", "min")
    lowest = min(result.history["val_error"])
    assert read_run(tmp_path / "one").best("val_error")["val_error"] == lowest
