"""Generated bad inputs: none is accepted silently, every error is one of ours and names what is wrong.

A row draws a bad input from a family; the name, the value and the place in which it stands differ with the draw.
"""

import hashlib
import itertools
import json
import math
import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.checkpoint.keep import Keep
from fntrain.checkpoint.pack import canonical
from fntrain.checkpoint.params import restore_params
from fntrain.checkpoint.safetensors import export, load
from fntrain.run.directory import RunDirectory
from fntrain.run.writers import CSVWriter, JSONLWriter

OURS = (ft.ConfigError, ft.DataError, ft.CheckpointError, ft.NonFiniteError)
X = np.arange(24, dtype=np.float32).reshape(12, 2)
Y = np.arange(12, dtype=np.float32)


def loss_fn(params, batch, ctx):
    return ft.losses.mse(batch[0] @ params["w"], batch[1])


def never(params, batch, ctx):
    raise AssertionError("a bad input got as far as the loss")


SGD = ft.optimizers.sgd(0.1)
TASK = ft.Task(never, SGD)
RUNS = ft.Task(loss_fn, SGD)  # where the loss is traced before the fault is met
STATE = {"w": np.zeros(2, np.float32)}


def fitted(data=(X, Y), task=TASK, **more):
    state = ft.init_state(task, STATE)
    return ft.fit(task, state, data, **{"epochs": 1, "batch_size": 4, "progress": False, **more})


def traced(loss, batch=(X, Y), weight=None, params=STATE, **more):
    task = ft.Task(loss, SGD, **more)
    return jax.eval_shape(lambda s: ft.train_step(task, s, batch, weight), ft.init_state(task, params))


ROWS = {}


def row(function):
    ROWS[function.__name__] = function
    return function


# Each row: (random.Random, directory) -> (words the message must hold, the call).

NOT_POSITIVE_INTEGERS = [0, -1, -7, 2.5, "3", None, True, math.nan, [1]]
NOT_NUMBERS = [math.nan, math.inf, -math.inf, "0.1", [0.1]]


@row
def batch_size(rng, _):
    value = rng.choice(NOT_POSITIVE_INTEGERS)
    return ["`batch_size`", repr(value)], lambda: fitted(batch_size=value)


@row
def loader_batch_size(rng, _):
    value = rng.choice(NOT_POSITIVE_INTEGERS)
    return ["`batch_size`", repr(value)], lambda: ft.data_loader((X, Y), value)


@row
def larger_batch_than_data(rng, _):
    size = rng.randint(13, 1000)
    return ["drop_last", "12", str(size)], lambda: ft.data_loader((X, Y), size, drop_last=True)


@row
def epochs_or_steps(rng, _):
    name, value = rng.choice(["epochs", "steps"]), rng.choice([0, -1, -7, 2.5, "3", True, math.nan])
    return [f"`{name}`", repr(value)], lambda: fitted(**{"epochs": None, name: value})


@row
def epochs_and_steps(rng, _):
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    return ["`epochs`", "`steps`", str(a), str(b)], lambda: fitted(epochs=a, steps=b)


@row
def log_and_save_intervals(rng, folder):
    name, value = rng.choice(["log_every", "checkpoint_every"]), rng.choice([0, -3, 1.5, "2"])
    return [f"`{name}`", repr(value)], lambda: fitted(run_dir=folder / "run", **{name: value})


@row
def empty_data(rng, _):
    data = rng.choice([(X[:0], Y[:0]), [], {"x": X[:0]}, np.zeros((0, 3)), ()])
    return ["`data`"], lambda: fitted(data)


@row
def lengths_differ(rng, _):
    n = rng.randint(1, 11)
    data = {"x": X, "y": Y[:n]}
    return ["12", str(n), "y"], lambda: fitted(data)


@row
def no_numbers(rng, _):
    bad = rng.choice([np.array(["a"] * 12), np.array([None] * 12), np.array([b"x"] * 12)])
    name = rng.choice(["label", "text"])
    return ["`data`", f"`{name}`", str(bad.dtype)], lambda: fitted({"x": X, name: bad})


@row
def no_data(rng, _):
    value = rng.choice([None, 3, "data.npz", 2.5, {}])
    return ["`data`"], lambda: fitted(value)


@row
def ragged(rng, _):
    data = [[1.0] * rng.randint(1, 3), [1.0] * rng.randint(4, 6)]
    return ["data"], lambda: ft.data_loader((np.asarray(data, object),), 1)


class ByLabel:
    """As a series: indexed by labels, and marks some of its values as missing."""

    def __init__(self, values, missing=0):
        self.values, self.missing, self.dtype, self.shape = values, missing, values.dtype, values.shape

    def null_count(self):
        return self.missing

    def __array__(self, dtype=None, copy=None):
        return self.values

    def __getitem__(self, labels):
        raise KeyError(labels)


@row
def columns_that_are_no_arrays_of_numbers(rng, _):
    bad, word = rng.choice([
        (np.ma.masked_array(Y, Y > 5), "missing"), (ByLabel(Y, rng.randint(1, 9)), "missing"),
        (np.zeros(12, [("a", "f4")]), "names"), (np.zeros(12, [("a", "f4")]).view(np.recarray), "names"),
        (Y.astype(np.longdouble), "astype"), (Y.astype("M8[s]"), "datetime64"), (Y.astype("m8[s]"), "timedelta64"),
        (Y.astype(object), "object"), (["a"] * 12, "<U1"), ([[1], [2, 3]] * 6, "length"), ([1, None] * 6, "object"),
        ((i for i in range(12)), "generator"), (object(), "object"), (jax.random.split(jax.random.key(0), 12), "keys"),
        ({"inner": np.array(["a"] * 12)}, "inner"),
    ])  # fmt: skip
    name = rng.choice(["label", "text"])
    return ["`data`", name, word], lambda: fitted({"x": X, name: bad})


@row
def columns_in_a_batch_that_are_none(rng, _):
    bad = rng.choice([Y.astype(object), "train", ["a"] * 12, [[1], [2, 3]] * 6, np.ma.masked_array(Y, Y > 5)])
    at = rng.choice([0, 1])
    batches = [{"x": X, "odd": Y} for _ in range(2)]
    batches[at]["odd"] = bad
    return [f"batch {at}", "`odd`"], lambda: fitted(
        batches, task=ft.Task(lambda p, b, c: b["odd"] * p["w"][0], SGD)
    )


OF_N = ft.Task(lambda p, b, c: b["n"].astype(jnp.float32) * p["w"][0], SGD)


@row
def numbers_past_32_bits(rng, _):
    x = Y.astype(rng.choice([np.int64, np.uint64, np.float64]))
    x[rng.randrange(12)] = rng.choice([2**33, 2**40, 2**62] if x.dtype.kind in "iu" else [1e39, 1e300])
    return ["`data`", "`n`", "x64"], lambda: fitted({"x": X, "n": x}, task=OF_N)


@row
def columns_beside_each_other(rng, _):
    given = TASK, ft.init_state(TASK, STATE), X, Y
    call = rng.choice([
        lambda: ft.fit(*given), lambda: ft.evaluate(*given), lambda: ft.run_epoch(*given), lambda: ft.data_loader(X, Y),
        lambda: fitted([X, Y]),
    ])  # fmt: skip
    return ["`data`", "(x, y)"], call


@row
def a_form_the_loss_does_not_take(rng, _):
    of_dict = ft.Task(lambda p, b, c: ft.losses.mse(b["x"] @ p["w"], b["y"]), SGD)
    of_pair = ft.Task(lambda p, b, c: (lambda x, y: ft.losses.mse(x @ p["w"], y))(*b), SGD)
    data, task = rng.choice([((X, Y), of_dict), ([(X, Y)], of_dict), ({"x": X, "y": Y}, of_pair)])
    return ["`loss_fn`", "`data`"], lambda: fitted(data, task=task)


@row
def weights_of_a_pair(rng, _):
    bad = rng.choice(
        [-np.ones(12), np.full(12, np.nan), np.ones(rng.randint(1, 11)), np.ones((12, 1)), np.ones(())]
    )
    pairs = [((X, Y), np.ones(12)), ((X, Y), bad)]
    task = ft.Task(lambda p, b, c: (lambda x, y: ft.losses.mse(x @ p["w"], y))(*b), SGD)
    return ["batch 1", "`weight`"], lambda: fitted(pairs, task=task)


@row
def functions_that_give_no_batches(rng, _):
    bad = rng.choice([
        lambda a, b: [(X, Y)], lambda shuffle=True: [(X, Y)], lambda epoch: (X, Y), lambda epoch: {"x": X},
        lambda epoch: X, lambda epoch: None, lambda: None, lambda *, epoch: [(X, Y)],
    ])  # fmt: skip
    return ["`data`", "function"], lambda: fitted(bad)


@row
def data_without_an_end(rng, _):
    endless = rng.choice(
        [itertools.cycle([(X, Y)]), itertools.repeat((X, Y)), lambda epoch: itertools.cycle([(X, Y)])]
    )
    name, words = rng.choice([("data", "no end"), ("validation_data", "no end|read only once")])
    return [f"`{name}`", words], lambda: fitted(task=RUNS, **{"data": (X, Y), name: endless})


@row
def validation_that_can_be_read_once(rng, _):
    epochs = rng.randint(2, 9)
    once = rng.choice(
        [lambda: iter([(X, Y)]), lambda: ((X, Y) for _ in range(3)), lambda: map(tuple, [(X, Y)])]
    )
    return ["`validation_data`", "once"], lambda: fitted(task=RUNS, epochs=epochs, validation_data=once())


@row
def seed(rng, _):
    value = rng.choice([-1, 1.5, "0", None])
    return ["`seed`", repr(value)], lambda: fitted(seed=value)


@row
def learning_rate(rng, _):
    make = rng.choice([ft.optimizers.sgd, ft.optimizers.adam, ft.optimizers.adamw, ft.optimizers.rmsprop])
    value = rng.choice([-1.0, -1e-9, *NOT_NUMBERS, None])
    return ["learning_rate", repr(value)], lambda: make(value)


@row
def decay_rates(rng, _):
    name = rng.choice(["b1", "b2"])
    value = rng.choice([1.0, 1.5, -0.1, *NOT_NUMBERS])
    return [f"`{name}`", repr(value)], lambda: ft.optimizers.adam(0.1, **{name: value})


@row
def momentum(rng, _):
    value = rng.choice([1.0, 1.5, -0.1, *NOT_NUMBERS])
    return ["`momentum`|`decay`", repr(value)], lambda: ft.optimizers.sgd(0.1, momentum=value)


@row
def clip(rng, _):
    make = rng.choice([ft.clip_by_norm, ft.clip_by_leaf_norm, ft.clip_by_value])
    value = rng.choice([0, -1.0, *NOT_NUMBERS])
    return ["`max_", repr(value)], lambda: make(value)


@row
def accumulation(rng, _):
    value = rng.choice([0, -1, 2.5, "2", math.nan])
    return ["`every_k", repr(value)], lambda: ft.MultiSteps(SGD, value)


@row
def microbatches(rng, _):
    value = rng.choice([0, -1, 2.5, "2", None])
    return ["`microbatches`", repr(value)], lambda: ft.Task(loss_fn, SGD, microbatches=value)


@row
def weight_decay(rng, _):
    value = rng.choice([-0.1, *NOT_NUMBERS])
    return ["rate|weight_decay", repr(value)], lambda: ft.add_weight_decay(value)


@row
def schedule_lengths(rng, _):
    value = rng.choice([-1, -100, 1.5, "10", math.nan])
    make = rng.choice([
        lambda: ft.schedules.cosine(0.1, value),
        lambda: ft.schedules.linear(0.1, 0.0, value),
        lambda: ft.schedules.warmup(ft.schedules.constant(0.1), value),
        lambda: ft.schedules.cooldown(ft.schedules.constant(0.1), value),
    ])  # fmt: skip
    return ["`", repr(value)], make


@row
def unknown_names(rng, _):
    word = rng.choice(["half", "int8", "f8", "bf61"])
    return ["`policy`", word], lambda: ft.Task(loss_fn, SGD, policy=word)


@row
def not_a_transform(rng, _):
    tx = rng.choice([ft.optimizers.adam, 0.1, "adam", None, loss_fn])
    return ["`tx`"], lambda: ft.Task(loss_fn, tx)


@row
def not_a_metric(rng, _):
    metric = rng.choice([ft.metrics.accuracy, 3, "accuracy", None, ft.metrics.Metric])
    return ["metric", "acc"], lambda: ft.Task(loss_fn, SGD, {"acc": metric})


@row
def loss_shapes(rng, _):
    n = rng.randint(2, 11)
    return ["[12]", f"[{n}]|{n}"], lambda: traced(lambda p, b, c: ft.losses.mse(b[0][:n, 0], b[1]))


@row
def loss_column_against_row(rng, _):
    make = rng.choice([ft.losses.mse, ft.losses.mae, ft.losses.huber, ft.losses.binary_cross_entropy])
    return ["[12, 1]", "[12]"], lambda: make(jnp.zeros((12, 1)), jnp.zeros(12))


@row
def soft_labels_of_another_batch(rng, _):
    n = rng.choice([1, 2, 5])
    return ["[12, 3]", f"[{n}, 3]"], lambda: ft.losses.cross_entropy(
        jnp.zeros((12, 3)), jnp.full((n, 3), 1 / 3)
    )


@row
def float_labels(rng, _):
    dtype = rng.choice(["float32", "bfloat16", "float16"])
    return ["labels", dtype], lambda: ft.losses.cross_entropy(jnp.zeros((4, 3)), jnp.zeros(4, dtype))


@row
def label_smoothing(rng, _):
    value = rng.choice([-0.1, 1.0, 1.5, *NOT_NUMBERS])
    call = lambda: ft.losses.cross_entropy(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32), label_smoothing=value)
    return ["`label_smoothing`", repr(value)], call


@row
def what_a_loss_returns(rng, _):
    bad = rng.choice([None, {}, "x", (1, 2), 3])
    return ["loss_fn"], lambda: traced(lambda p, b, c: bad)


@row
def loss_dtype(rng, _):
    dtype = rng.choice(["int32", "complex64", "bool"])
    return [dtype], lambda: traced(lambda p, b, c: (b[0] @ p["w"]).astype(dtype))


@row
def weight_shapes(rng, _):
    shape = rng.choice([(11,), (12, 1), (), (2, 6), (13,)])
    return ["`weight`", str(list(shape))], lambda: traced(loss_fn, weight=np.ones(shape, np.float32))


@row
def parameters(rng, _):
    bad = rng.choice([jnp.tanh, "dense", object(), np.array([None]), np.ones(2, np.complex64)])
    return ["`params`", "`odd`"], lambda: ft.init_state(TASK, {**STATE, "odd": bad})


@row
def no_trained_parameters(rng, _):
    bad = rng.choice([{}, None, {"n": np.arange(3)}, [], {"a": {}}])
    return ["`params`"], lambda: ft.init_state(TASK, bad)


@row
def regexes(rng, _):
    bad = rng.choice(["(", "[a", "*x", "nothing/like/this", "w$$x"])
    tx = ft.freeze(SGD, bad) if bad not in ("(", "[a", "*x") else None
    return [repr(bad)], lambda: (tx or ft.freeze(SGD, bad)).init({"w": jnp.ones(2), "b": jnp.ones(1)})


@row
def callbacks(rng, _):
    bad = rng.choice([3, [3], [ft.callbacks.EarlyStopping], ["stop"], lambda logs: None, [None]])
    return ["`callbacks`"], lambda: fitted(callbacks=bad)


@row
def monitor_modes(rng, _):
    bad = rng.choice(["least", "MIN", "", None, 1])
    make = rng.choice([lambda: Keep(best=("loss", bad)), lambda: ft.callbacks.EarlyStopping(mode=bad)])
    return [repr(bad), "min"], make


@row
def monitor_that_is_no_column(rng, _):
    name = rng.choice(["val_los", "accurcy", "f1"])
    stop = rng.choice([ft.callbacks.EarlyStopping(name), ft.callbacks.ReduceLROnPlateau(name)])
    return [name, "loss"], lambda: fitted(task=RUNS, callbacks=[stop])


@row
def run_names(rng, _):
    bad = rng.choice(["", "  ", "a\0b", "x" * rng.randint(256, 400), "gs://bucket/run", 7, b"run"])
    return ["`run_dir`"], lambda: fitted(task=RUNS, run_dir=bad)


@row
def checkpoint_names(rng, _):
    bad = rng.choice(["", "a\0b", "y" * rng.randint(256, 400), "s3://bucket", None, 7])
    return ["`directory`"], lambda: Checkpointer(bad)


@row
def ranked_names(rng, _):
    bad = rng.choice(["../x", "/x", "", "a\nb", "a\0", "x" * rng.randint(129, 400), "..", "a//b"])
    return ["`best`", "name"], lambda: Keep(best=(bad, "min"))


@row
def keep_numbers(rng, _):
    name, value = rng.choice(["latest", "every"]), rng.choice([0, -1, 1.5, "3", True])
    return [f"`{name}`", repr(value)], lambda: Keep(**{name: value})


@row
def run_dir_is_a_file(rng, folder):
    (folder / "file").write_text("mine")
    below = folder / "file" / ("run" if rng.random() < 0.5 else ".")
    return ["`run_dir`|cannot be made", "file"], lambda: fitted(task=RUNS, run_dir=below)


@row
def run_dir_in_use(rng, folder):
    RunDirectory(folder / "run", {"n": 1}, {}, False).__exit__(None, None, None)
    return ["`run_dir`", "resume=True"], lambda: fitted(task=RUNS, run_dir=folder / "run")


@row
def run_dir_locked(rng, folder):
    run = RunDirectory(folder / "run", {"n": 1}, {}, False)

    def call():
        with run:
            fitted(task=RUNS, run_dir=folder / "run", resume=rng.random() < 0.5)

    return ["is in use by process", "since"], call


@row
def resume_words(rng, folder):
    bad = rng.choice(["yes", "Must", 2, None, "auto"])
    return ["`resume`", repr(bad)], lambda: RunDirectory(folder / "run", {}, {}, bad)


@row
def nothing_to_resume(rng, folder):
    if rng.random() < 0.5:
        RunDirectory(folder / "run", {"n": 1}, {}, False).__exit__(None, None, None)
    return ["resume", "no checkpoint", "run"], lambda: fitted(
        task=RUNS, run_dir=folder / "run", resume="must"
    )


def saved(folder, state, step=3, **more):
    with Checkpointer(folder / "c") as checkpoints:
        checkpoints.save(state, step=step, **more)
    return Checkpointer(folder / "c")


@row
def another_models_checkpoint(rng, folder):
    state = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
    change = rng.choice([
        {"w": np.ones((3, 2), np.float32)}, {"w": np.ones((2, 3), np.int32)}, {"w": np.ones((2, 3), np.float16)},
        {"v": np.ones(1)}, {"w": np.ones((1, 3), np.float32)}, {"w": np.ones(6, np.float32)},
    ])  # fmt: skip
    (leaf,) = change
    return [leaf, "shape|dtype|missing", "step 3"], lambda: saved(folder, state).restore({**state, **change})


@row
def steps_that_are_not_there(rng, folder):
    step = rng.choice([0, 4, 10**9, "last", "3", 3.0, -1])
    return ["step", str(step)], lambda: saved(folder, {"w": np.ones(1)}).restore({"w": np.ones(1)}, step=step)


@row
def newer_formats(rng, folder):

    number = rng.randint(2, 99)

    def call():
        checkpoints = saved(folder, {"params": {"w": np.ones(1)}})
        file = folder / "c" / "3" / "meta" / "checkpoint.json"
        document = json.loads(file.read_text())
        document.pop("sha256")
        document["format"] = number
        digest = hashlib.sha256(canonical(document).encode()).hexdigest()
        file.write_text(json.dumps({"sha256": digest, **document}))
        del checkpoints
        restore_params(folder / "c")

    return [f"format {number}", "up to 1"], call


@row
def colliding_keys(rng, folder):
    a, b = rng.choice("abc"), rng.choice("xyz")
    state = {f"{a}/{b}": np.ones(1), a: {b: np.ones(1)}}
    call = rng.choice([lambda: saved(folder, state), lambda: export(state, folder / "f")])
    return [f"`{a}/{b}`", "two leaves"], call


@row
def leaves_that_cannot_be_saved(rng, folder):
    bad = rng.choice(["text", len, object(), np.array([None]), np.array(["a"]), {1, 2}])
    call = rng.choice([lambda s: saved(folder, s), lambda s: export(s, folder / "f")])
    return ["odd"], lambda: call({"w": np.ones(1), "odd": bad})


@row
def files_that_are_no_checkpoint(rng, folder):
    content = rng.choice([b"", b"\x80\x04K\x01.", b"PK\x03\x04", rng.randbytes(100), b"{}"])
    (folder / "model.bin").write_bytes(content)
    read = rng.choice([restore_params, load, Checkpointer])
    return ["model.bin", "unpickled"], lambda: read(folder / "model.bin")


@row
def extra_that_cannot_be_saved(rng, folder):
    bad = rng.choice([{"f": len}, {"s": {1, 2}}, [1], {"k": {(1,): 2}}, {"o": object()}])
    return ["`extra|keys of"], lambda: saved(folder, {"w": np.ones(1)}, extra=bad)


@row
def cells_that_are_no_values(rng, folder):
    make, bad = rng.choice([CSVWriter, JSONLWriter]), rng.choice([object(), len, {1, 2}, 1j, b"x"])
    return ["column `odd`", type(bad).__name__], lambda: make(folder / "m").write({"epoch": 1, "odd": bad})


@row
def donated_states(rng, folder):
    donated = jnp.ones(3)
    jax.jit(lambda x: x + 1, donate_argnums=0)(donated)
    return ["donated"], lambda: saved(folder, {"w": donated})


@row
def renames(rng, folder):
    rules, word = rng.choice(
        [({"(": "a"}, "regular expression"), ({"^zzz": "a"}, "matches no leaf"), ({"a": "b"}, "both")]
    )
    state = {"a": np.ones(1), "b": np.ones(1)}
    return ["`rename`", word], lambda: saved(folder, state).restore(state, rename=rules)


@pytest.mark.parametrize("draws", [3, pytest.param(20, marks=pytest.mark.reliability)])
def test_r4_no_bad_input_is_accepted_or_raises_what_is_not_ours(draws, tmp_path, record):
    silent, raw, unnamed, slow, n = [], [], [], [], 0
    for name, make in ROWS.items():
        for draw in range(draws):
            rng = random.Random(f"{name} {draw}")
            folder = tmp_path / f"{name} {draw}"
            folder.mkdir()
            words, call = make(rng, folder)
            n += 1
            start = time.monotonic()
            try:
                call()
                silent.append((name, draw))
            except OURS as error:
                message = f"{error}"
                if (
                    not all(any(part in message for part in word.split("|")) for word in words)
                    or len(message) > 900
                ):
                    unnamed.append((name, draw, words, message[:300]))
            except Exception as error:
                raw.append((name, draw, words, repr(error)[:300]))
            if time.monotonic() - start > 5:
                slow.append((name, draw))
    record(
        "R4",
        inputs=n,
        families=len(ROWS),
        silent=len(silent),
        raw_errors=len(raw),
        unnamed=len(unnamed),
        slow=len(slow),
    )
    wrong = [*silent, *raw, *unnamed, *slow]
    assert not wrong, "\n".join(map(str, wrong))
