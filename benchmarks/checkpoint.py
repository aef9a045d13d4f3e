"""What a checkpoint costs: `python -m benchmarks.checkpoint [--rounds N] [--tree NAME]`.

- the loop's pause for a save in the background, beside the plain copy of the same arrays from device to host;
- the digests' share of a whole save, and the save beside Orbax's own of the same arrays;
- restoring, every digest verified, beside Orbax's own restore, which verifies none;
- what a step between saves pays.

Saves go to a temporary directory: on a disk, the disk's speed is part of every figure but the pause.
"""

import argparse
import datetime
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from benchmarks._measure import interleaved, table
from benchmarks.optimizer import TREES, arrays
from fntrain.checkpoint import checkpointer as checkpoint
from fntrain.checkpoint.checkpointer import Checkpointer
from fntrain.checkpoint.keep import Keep


def measured(name: str, rounds: int) -> list[list[str]]:
    """Rows of the table for one tree: parameters and two moments."""
    host = arrays(TREES[name], 0)
    state = {
        part: {k: jnp.asarray(v) + i for k, v in host.items()} for i, part in enumerate(("params", "m", "v"))
    }
    jax.block_until_ready(state)
    root = Path(tempfile.mkdtemp(prefix="checkpoint-benchmark-"))
    checkpoints = Checkpointer(root / "ours", Keep(latest=1, best=None))
    plain = ocp.PyTreeCheckpointer()
    background = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
    step = 0

    def fresh(folder: str) -> Path:
        nonlocal step
        step += 1
        shutil.rmtree(root / f"{folder}{step - 8}", ignore_errors=True)
        return root / f"{folder}{step}"

    def copy() -> float:
        start = time.perf_counter()
        copies = [np.array(x) for x in jax.device_get(jax.tree.leaves(state))]
        taken = time.perf_counter() - start
        del copies
        return taken

    def save(whole: bool) -> float:
        nonlocal step
        step += 1
        start = time.perf_counter()
        checkpoints.save(state, step=step)
        pause = time.perf_counter() - start
        checkpoints.wait()
        return time.perf_counter() - start if whole else pause

    def digests() -> float:
        leaves = [np.asarray(x) for x in jax.tree.leaves(state)]
        start = time.perf_counter()
        for i, x in enumerate(leaves):
            checkpoint._digest(str(i), x)
        return time.perf_counter() - start

    def orbax_pause() -> float:
        path = fresh("async")
        start = time.perf_counter()
        background.save(path, args=ocp.args.PyTreeSave(state))
        pause = time.perf_counter() - start
        background.wait_until_finished()
        return pause

    def orbax_save() -> float:
        path = fresh("sync")
        start = time.perf_counter()
        plain.save(path, state)
        return time.perf_counter() - start

    checkpoints.save(state, step=0)
    checkpoints.wait()
    plain.save(root / "to read", state)
    arguments = ocp.checkpoint_utils.construct_restore_args(state)
    reading = Checkpointer(root / "to read by us", Keep(latest=1, best=None))
    reading.save(state, step=0)
    reading.wait()

    def restore() -> float:
        start = time.perf_counter()
        jax.block_until_ready(reading.restore(state, step=0))
        return time.perf_counter() - start

    def orbax_restore() -> float:
        start = time.perf_counter()
        jax.block_until_ready(plain.restore(root / "to read", item=state, restore_args=arguments))
        return time.perf_counter() - start

    seconds = interleaved(
        {
            "copy to host": copy,
            "pause": lambda: save(False),
            "pause, Orbax": orbax_pause,
            "digests": digests,
            "save": lambda: save(True),
            "save, Orbax": orbax_save,
            "restore": restore,
            "restore, Orbax": orbax_restore,
        },
        rounds=rounds,
        warmup=1,
        timed=True,
    )
    checkpoints.close()
    background.close()
    shutil.rmtree(root)
    against = {
        "pause": "copy to host",
        "pause, Orbax": "copy to host",
        "digests": "save",
        "save": "save, Orbax",
        "restore": "restore, Orbax",
    }
    ratios = {what: f"{seconds[what] / seconds[base]:.2f} of {base}" for what, base in against.items()}
    return [[name, what, f"{1e3 * taken:.1f}", ratios.get(what, "")] for what, taken in seconds.items()]


def between_saves() -> list[str]:
    """What the loop asks of its run directory at each step: whether the last save has failed."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoints: Any = Checkpointer(directory)
        checkpoints.save({"w": np.ones(1)}, step=0)
        n = 200_000
        while not checkpoints._pending.done():
            time.sleep(0.01)
        start = time.perf_counter()
        for _ in range(n):
            checkpoints.failed()
        taken = (time.perf_counter() - start) / n
        checkpoints.close()
    return ["", "a step between saves", f"{1e3 * taken:.5f}", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tree", choices=list(TREES), action="append")
    args = parser.parse_args()
    rows = [row for name in args.tree or list(TREES) for row in measured(name, args.rounds)]
    rows.append(between_saves())
    print(
        f"{datetime.date.today()}, {platform.machine()}, {jax.default_backend()}, jax {jax.__version__}, "
        f"orbax {ocp.__version__}, medians of {args.rounds} interleaved rounds; three arrays for each of the tree's\n"
    )
    print(table(rows, ["tree", "what", "ms", "ratio"]))


if __name__ == "__main__":
    main()
