"""One of several processes of a run, started by test_multiprocess.py: what it does, and what it saw, as JSON."""

import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import fntrain as ft
from fntrain import callbacks, population

RULES = [("up", P("data", "model")), ("down", P("model", "data"))]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 8)).astype(np.float32)
Y = RNG.normal(size=(30, 4)).astype(np.float32)


def init_params(key):
    one, two = jax.random.split(key)
    return {"up": jax.random.normal(one, (8, 16)), "down": jax.random.normal(two, (16, 4)) / 4}


def loss_fn(params, batch, ctx):
    prediction = jnp.tanh(batch["x"] @ params["up"]) @ params["down"]
    loss = ft.losses.mse(prediction, batch["y"])
    return loss.with_outputs(predictions=prediction, targets=batch["y"])


TX = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-2))
TASK = ft.Task(loss_fn, TX, {"mae": ft.metrics.mae()}, microbatches=2)
FIT = dict(batch_size=8, seed=3, progress=False, validation_data={"x": X[:9], "y": Y[:9]})


def start(mesh):
    return ft.init_state(TASK, init_params, key=1, mesh=mesh, rules=RULES)


def run(mesh, folder, callbacks=(), **options):
    """A run of `fit` with a run directory, and what is to be the same however many processes run it."""
    result = ft.fit(
        TASK, start(mesh), {"x": X, "y": Y}, run_dir=folder, callbacks=callbacks, **FIT, **options
    )
    return {
        "step": int(result.state.step),
        "history": {name: list(result.history[name]) for name in ("loss", "mae", "val_loss", "grad_norm")},
        "params": jax.tree.map(np.ndarray.tolist, ft.sharding.to_host(result.state.params)),
        "evaluated": ft.evaluate(TASK, result.state, {"x": X, "y": Y}, batch_size=7),
    }


def pieces(mesh, me):
    """What `put`, `to_host` and `shard_batch` do with arrays that no process has whole."""
    state = start(mesh)
    share = {"x": X[:3], "y": Y[:3]} if me == 0 else {"x": X[3:10], "y": Y[3:10]}
    local, weight = ft.sharding.shard_batch(share, mesh, local=True)
    fixed, _ = ft.sharding.shard_batch(share, mesh, local=True, rows=9)
    together, together_weight = ft.sharding.shard_batch({"x": X[:10], "y": Y[:10]}, mesh)
    losses = [
        float(ft.compute_metrics(TASK, ft.eval_step(TASK, state, batch, w))["loss"])
        for batch, w in ((local, weight), (together, together_weight))
    ]
    return {
        "losses": losses,
        "weight": ft.sharding.to_host(weight).tolist(),
        "rows": [int(b["x"].shape[0]) for b in (local, fixed, together)],
        "x": ft.sharding.to_host(local)["x"].tolist(),
        "up_is_whole": state.params["up"].is_fully_replicated,
        "up": ft.sharding.to_host(state).params["up"].tolist(),
    }


def scaled(params, batch, ctx):
    return ft.losses.mse(batch["x"] @ params["w"], batch["y"][:, 0])


def populated(mesh, folder):
    """A population whose members are split over a mesh: trained, bred, saved and resumed, looked at one by one."""
    task = ft.Task(scaled, ft.with_hyperparams(ft.optimizers.sgd, learning_rate=0.1))
    rates = [0.01, 0.05, 0.1, 0.9]
    params = {"w": np.zeros(8, np.float32)}
    states = population.init(task, params, hyperparams={"learning_rate": rates}, mesh=mesh)
    for epochs in (1, 3):
        watching = [callbacks.ReduceLROnPlateau("val_loss", patience=1)]
        options = dict(epochs=epochs, run_dir=Path(folder, "population"), resume=True, callbacks=watching)
        options.update(steps_per_call=1)
        result = population.fit(
            task, states, {"x": X, "y": Y}, controller=population.pbt(quantile=0.5, every=8), **options, **FIT
        )
    return {
        "rates": np.array(result.history["learning_rate_each"]).tolist(),
        "val_loss": np.array(result.history["val_loss_each"]).tolist(),
        "members": [population.member(result.state, i).params["w"].tolist() for i in range(4)],
    }


class At:
    """Leaves a mark at a step, and then waits for what the test does to the process, or kills it itself."""

    def __init__(self, step, folder, kill=False):
        self.step, self.mark, self.kill = step, Path(folder) / f"mark-{jax.process_index()}", kill

    def on_step_end(self, ctx):
        if ctx.step == self.step:
            if self.kill and jax.process_index() == 1:
                os.kill(os.getpid(), 9)
            self.mark.touch()


if __name__ == "__main__":
    address, count, me, what, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4 // count)
    for name, value in (("dtype_promotion", "strict"), ("rank_promotion", "raise")):
        jax.config.update(f"jax_numpy_{name}", value)
    ft.sharding.initialize(address, count, me, heartbeat_timeout=5, initialization_timeout=30)
    ft.sharding.initialize()  # again is harmless
    mesh = ft.sharding.mesh(data=2, model=2)
    seen = {"devices": len(jax.devices())}
    if what == "whole":
        seen |= run(mesh, folder, epochs=2, checkpoint_every=3)
        seen["pieces"] = pieces(mesh, me)
        seen["population"] = populated(ft.sharding.mesh(members=4, data=1), folder)
        try:
            ft.fit(TASK, ft.init_state(TASK, init_params), {"x": X, "y": Y}, **FIT)
        except ft.ConfigError as error:
            seen["alone"] = str(error)
    elif what == "long":
        seen |= run(mesh, folder, [At(6, folder)], epochs=10**6)
    elif what == "killed":
        seen |= run(mesh, folder, [At(6, folder, kill=True)], epochs=2, checkpoint_every=3)
    elif what == "raises":
        if me == 1:
            raise RuntimeError("out of luck")
        seen |= run(mesh, folder, epochs=10**6)
    elif what == "resumed":
        seen |= run(mesh, folder, epochs=2, checkpoint_every=3, resume=True)
    Path(folder, f"seen-{me}.json").write_text(json.dumps(seen))
