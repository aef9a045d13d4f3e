"""The program that the reliability tests kill, signal, fill up and damage.

`python _run.py` serves jobs, one JSON object a line: it forks, and the child runs the job and ends as any script
would. The parent has imported all there is to import and started no backend, so a job costs a fork.
"""

import contextlib
import functools
import gc
import hashlib
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import tensorstore

import fntrain as ft
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.checkpoint.keep import Keep

ROWS, BATCH, EPOCHS = 44, 8, 6  # six batches an epoch, the last one padded
EVERY = 4  # checkpoints inside epochs and inside accumulation windows


def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 4)).astype(np.float32)
    return {"x": x, "y": np.sin(x.sum(1)).astype(np.float32)}


def source(kind):
    """The training data, as each kind of source that `fit` takes."""
    arrays = data()
    if kind == "arrays":
        return arrays

    def whole_batches(epoch):
        order = np.random.default_rng([7, epoch]).permutation(ROWS)
        if kind == "grain":
            import grain

            pipeline = (
                grain.MapDataset.source(np.arange(ROWS)).shuffle(seed=epoch).batch(BATCH, drop_remainder=True)
            )
            order = np.concatenate(list(pipeline))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield jax.tree.map(lambda x: x[order[start : start + BATCH]], arrays)

    return whole_batches


def loss_fn(params, batch, ctx):
    hidden = jnp.tanh(batch["x"] @ params["in"])
    if ctx.train:
        hidden = jnp.where(jax.random.bernoulli(ctx.key, 0.8, hidden.shape), hidden / 0.8, 0.0)
    predictions = hidden @ params["out"]
    return ft.losses.mse(predictions, batch["y"]).with_outputs(predictions=predictions, targets=batch["y"])


def build():
    """Task and state: dropout, an accumulation window of three, a schedule, a plateau, an average."""
    rng = np.random.default_rng(1)
    params = {
        "in": rng.standard_normal((4, 16)).astype(np.float32),
        "out": rng.standard_normal(16).astype(np.float32),
    }
    inner = ft.chain(
        ft.clip_by_norm(1.0),
        ft.optimizers.adamw(ft.schedules.warmup(ft.schedules.cosine(0.05, 12), 2)),
        ft.reduce_on_plateau(factor=0.5, patience=2),
        ft.ema(0.9),
    )
    task = ft.Task(loss_fn, ft.MultiSteps(inner, 3), metrics={"mae": ft.metrics.mae()})
    return task, ft.init_state(task, params, key=5)


class Steps:
    """Tells the test where the run is, and may act there."""

    def __init__(self, mark=None, pause=0.0, at=None, do=None):
        self.mark, self.pause, self.at, self.do = mark, pause, at, do

    def on_step_end(self, ctx):
        if self.mark:
            Path(self.mark).write_text(str(ctx.step))
        if self.pause:
            time.sleep(self.pause)
        if self.do and ctx.step == self.at:
            self.do()


def fit(
    directory, kind="arrays", callbacks=(), resume=True, epochs=EPOCHS, every=EVERY, monitors=True, **more
):
    task, state = build()
    arrays = data()
    if monitors:
        callbacks = [
            *callbacks,
            ft.callbacks.ReduceLROnPlateau("val_loss", patience=1),
            ft.callbacks.EarlyStopping("val_loss", patience=2, min_delta=0.05),
        ]
    return ft.fit(
        task,
        state,
        source(kind),
        epochs=epochs,
        batch_size=BATCH,
        validation_data=jax.tree.map(lambda x: x[:10] * 0.5, arrays),
        run_dir=directory,
        checkpoint_every=every,
        resume=resume,
        callbacks=callbacks,
        progress=False,
        **more,
    )


def digest(state):
    out = hashlib.sha256()
    for x in jax.tree.leaves(state):
        x = np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        out.update(f"{x.dtype}{x.shape}".encode() + x.tobytes())
    return out.hexdigest()


def outcome(result):
    return {
        "digest": digest(result.state),
        "step": int(result.state.step),
        "stop": result.stop_reason,
        "rows": repr(result.history.rows()),
    }


# Jobs. Each gets its keywords from the test.


def train(directory, result=None, mark=None, pause=0.0, kind="arrays", **more):
    done = fit(directory, kind, [Steps(mark, pause)], **more)
    if result:
        Path(result).write_text(json.dumps(outcome(done)))
    if done.interrupted:
        raise SystemExit(130)


def lock(directory, result, other=None, **more):
    """What `train` does, timed until it starts or is refused; whoever starts goes on when the other has answered."""
    build()  # the backend is up
    start = time.monotonic()

    class Began(Steps):
        def on_fit_begin(self, ctx):
            Path(result).write_text(json.dumps({"began": time.monotonic() - start}))
            while other and not Path(other).exists():  # or it may have ended before the other has started
                time.sleep(0.005)

    try:
        fit(directory, callbacks=[Began(pause=0.01)], resume=True, **more)
    except ft.RunLockedError as error:
        Path(result).write_text(json.dumps({"refused": str(error), "seconds": time.monotonic() - start}))


FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


def saves(directory, mode, result=None, crash=None, after=None):
    """Step 1, durable; then more saves with whatever they delete, killed at the `crash`-th file-system event.

    Events are those that Python sees; `after` some seconds a kill may also meet what the engine writes by itself.
    """
    keep = Keep(latest=1, best=None)
    checkpoints = Checkpointer(directory, keep)
    checkpoints.save(small(1), step=1, extra={"n": 1})
    checkpoints.wait()
    seen = []
    inside = os.fspath(directory)

    def hook(event, arguments):
        if event in FILE_EVENTS and isinstance(arguments[0], str | os.PathLike):
            writes = event != "open" or (
                isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
            path = os.fspath(arguments[0])
            if writes and (
                path.startswith(inside) or not os.path.isabs(path)
            ):  # relative to a folder being removed
                seen.append(f"{event} {path.removeprefix(inside)}")
                if len(seen) == crash:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    if after is not None:
        threading.Timer(after, os.kill, [os.getpid(), signal.SIGKILL]).start()
    if mode == "next":
        checkpoints.save(small(2), step=2, extra={"n": 2})
    elif mode == "replace":
        checkpoints.save(small(2), step=1, extra={"n": 2}, overwrite=True)
    else:
        for step in (2, 3):
            checkpoints.save(small(step), step=step, extra={"n": step})
    checkpoints.close()
    Path(result).write_text(json.dumps(seen))


def small(n):
    return {"params": {"w": np.full((8, 8), float(n)), "b": np.arange(3.0) + n}, "count": np.int64(n)}


def full_disk(directory, result, cycles, seed):
    """Fill and free the disk: the limit on a file's size, which a process may set for itself, stands in for it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    rng = np.random.default_rng(seed)
    counts = {"cycles": cycles, "said": 0, "older restored": 0, "first save after works": 0, "raw": []}
    checkpoints = Checkpointer(directory, Keep(best=None))

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def saved(step):
        noise = rng.standard_normal(50_000)  # incompressible: 400 kB on the disk
        checkpoints.save({"w": noise}, step=step)
        checkpoints.wait()
        return noise

    def there(step, content):
        return int(
            checkpoints.latest_step == step
            and np.array_equal(checkpoints.restore({"w": content})["w"], content)
        )

    kept = saved(0)
    for step in range(1, 2 * cycles, 2):
        limit(int(rng.integers(1, 200_000)))
        try:
            saved(step)
        except ft.CheckpointError:
            counts["said"] += 1
        except Exception as error:
            counts["raw"].append(repr(error))
        limit(resource.RLIM_INFINITY)
        counts["older restored"] += there(step - 1, kept)
        kept = saved(step + 1)
        counts["first save after works"] += there(step + 1, kept)
    counts["left over"] = len([p for p in Path(directory).iterdir() if not p.name.isdigit()])
    Path(result).write_text(json.dumps(counts))


def leave(directory, how, at):
    """Ways to end a run in the middle, each with a save in the background."""

    def act():
        match how:
            case "exception":
                raise ZeroDivisionError
            case "exit":
                sys.exit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "sigterm":
                os.kill(os.getpid(), signal.SIGTERM)
            case "sigint":
                os.kill(os.getpid(), signal.SIGINT)

    def run():
        return fit(directory, callbacks=[Steps(at=at, do=act)], every=2)

    if how == "thread":
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    elif how == "data":
        arrays = source("function")

        def broken(epoch):
            for index, batch in enumerate(arrays(epoch)):
                if epoch * 5 + index == at:
                    raise OSError("the data went away")
                yield batch

        task, state = build()
        ft.fit(task, state, broken, epochs=3, run_dir=directory, checkpoint_every=2, progress=False)
    elif how == "no with":
        checkpoints = Checkpointer(Path(directory, "checkpoints"))
        for step in range(1, at + 1):
            checkpoints.save({"w": np.zeros(200_000)}, step=step)
    else:
        result = run()
        names = [t.name for t in threading.enumerate() if t.name.startswith("fntrain")]
        assert not names, names
        if result.interrupted:
            sys.exit(130)


def soak(directory, result, steps, every):
    """Many steps and saves: what grows?"""
    compiled = []

    class Handler(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("Compiling jit("):
                compiled.append(record.getMessage().split()[1])

    logger = logging.getLogger("jax._src.interpreters.pxla")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(Handler())
    logger.propagate = False
    figures = []

    def checkpoints():
        folder = Path(directory, "checkpoints")
        return (
            {n for n in os.listdir(folder) if n[0] != "."} if folder.exists() else set()
        )  # a lock stands there

    def wait_for_the_last_save(step):
        """A save that is still being written, or one that is being thrown away, has files and threads of its own."""
        last, patience = str(step // every * every), time.monotonic() + 30
        while time.monotonic() < patience and step > every:
            if any(n.lstrip("0") == last for n in checkpoints()) and len(checkpoints()) <= 3:
                break
            time.sleep(0.05)
        time.sleep(0.3)

    class Look:
        def on_step_end(self, ctx):
            if ctx.step % (steps // 10) == every // 2:
                wait_for_the_last_save(ctx.step)
                gc.collect()
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
                files = len(os.listdir("/proc/self/fd"))
                kept = len(checkpoints()) if ctx.step > every else 0
                figures.append([ctx.step, resident, files, len(os.listdir("/proc/self/task")), kept])

    start = time.monotonic()
    task, state = build()
    # Few epochs: the history, which every checkpoint holds, is meant to grow.
    rows = jax.tree.map(lambda x: np.repeat(x, 50, 0), data())
    ft.fit(
        task, state, rows, steps=steps, batch_size=BATCH, run_dir=directory, checkpoint_every=every,
        callbacks=[Look()], progress=False,
    )  # fmt: skip
    Path(result).write_text(
        json.dumps({"figures": figures, "compiled": compiled, "seconds": time.monotonic() - start})
    )


def hang(directory, seconds):
    """A step that never ends, under a watchdog."""
    from fntrain.callbacks.watchdog import Watchdog

    fit(directory, callbacks=[Watchdog(seconds), Steps(at=5, do=functools.partial(time.sleep, 600))])


JOBS = {f.__name__: f for f in (train, lock, saves, full_disk, leave, soak, hang)}


def main():
    assert orbax.checkpoint
    assert tensorstore
    with contextlib.suppress(ImportError):
        import grain  # noqa: F401
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            log = os.open(job.pop("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
                os.dup2(file, number)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            warnings.simplefilter("default")
            JOBS[job.pop("job")](**job)
            return
        print(json.dumps({"pid": pid}), flush=True)
        print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)


if __name__ == "__main__":
    main()
