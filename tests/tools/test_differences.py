"""In what runs differ: in names that a reader wrote, and with nothing that is the same, or a default."""

import functools

import fntrain as ft
from fntrain.run.identity import identity_of
from fntrain.tools.differences import differences

cosine, warmup = ft.schedules.cosine, ft.schedules.warmup


def loss_fn(params, batch, ctx, smoothing=0.0):
    return ft.losses.mse(batch * params, batch + smoothing)


def other_loss(params, batch, ctx):
    return ft.losses.mae(batch * params, batch)


def times(k):
    return lambda params, batch, ctx: ft.losses.mse(batch * k, batch)


def said(*tasks, sizes=(32, 32), **more):
    data = [{"kind": "arrays", "leaves": {"0": "float32[96, 4]"}, "batch_size": n, "seed": 0} for n in sizes]
    configs = [
        {"epochs": 3, "batch_size": n, "seed": 0, "identity": identity_of(task, part, n, 0), **more}
        for task, part, n in zip(tasks, data, sizes)
    ]
    return differences(configs)


def test_arguments_go_by_the_names_that_they_were_given_by():
    one = ft.Task(
        functools.partial(loss_fn, smoothing=0.1),
        ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(warmup(cosine(0.1, 100), 10))),
        metrics={"accuracy": ft.metrics.accuracy()},
    )
    two = ft.Task(
        functools.partial(loss_fn, smoothing=0.2),
        ft.optimizers.adamw(warmup(cosine(0.2, 100), 10), weight_decay=0.0),
        metrics={"accuracy": ft.metrics.accuracy(top_k=3), "auc": ft.metrics.roc_auc()},
    )
    assert said(one, two, sizes=(32, 64)) == [
        ("batch_size", ["32", "64"]),  # once, though the data has it too
        ("loss_fn.smoothing", ["0.1", "0.2"]),
        ("tx.clip_by_norm", ["clip_by_norm(max_norm=1.0)", "–"]),
        ("tx.adamw.learning_rate.schedule.start", ["0.1", "0.2"]),
        ("tx.adamw.weight_decay", ["0.0001", "0.0"]),
        ("metrics.accuracy.top_k", ["1", "3"]),
        ("metrics.auc", ["–", "roc_auc()"]),
    ]
    assert said(one, one) == []


def test_a_function_is_its_name_and_a_closure_what_it_closes_over():
    sgd = ft.optimizers.sgd(0.1)
    assert said(ft.Task(loss_fn, sgd), ft.Task(other_loss, sgd)) == [("loss_fn", ["loss_fn", "other_loss"])]
    assert said(ft.Task(times(2), sgd), ft.Task(times(3), sgd)) == [("loss_fn.k", ["2", "3"])]
    (row,) = said(ft.Task(lambda p, b, ctx: ft.losses.mse(b, p), sgd), ft.Task(times(3), sgd))[:1]
    assert row[0] == "code of loss_fn"


def test_a_default_that_an_earlier_version_did_not_have_is_no_difference():
    configs = [
        {"identity": {"task": {"tx": {"call": "sgd", "learning_rate": 0.1, **more}}}}
        for more in ({}, {"momentum": 0.0}, {"momentum": 0.9})
    ]
    assert differences(configs[:2]) == []
    assert differences(configs) == [("tx.momentum", ["0.0", "0.0", "0.9"])]


def test_what_a_run_keeps_is_an_argument_and_what_follows_from_others_is_none():
    task = ft.Task(loss_fn, ft.optimizers.sgd(0.1))
    identity = identity_of(task, {}, 8, 0)
    configs = [
        {
            "identity": identity,
            "best": {"column": column, "mode": "max"},
            "better": {column: "max"},
            "jax": column,
        }
        for column in ("val_f1", "val_auc")
    ]
    assert differences(configs) == [("keep_best", ["val_f1, max", "val_auc, max"])]
