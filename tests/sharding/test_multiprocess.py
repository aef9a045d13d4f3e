"""Several real processes that act as one: joined over loopback, with collectives between their CPU devices."""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import fntrain as ft

ROOT = Path(__file__).parent.parent.parent
WORKER = Path(__file__).with_name("multiprocess_worker.py")
spec = importlib.util.spec_from_file_location("multiprocess_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)

pytestmark = pytest.mark.slow


def free_address():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


class Processes:
    """`count` processes of one program, their exit codes and what they said."""

    def __init__(self, arguments, count=2, environment=None):
        path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **(environment or {}),
        }  # fmt: skip
        self.said = [tempfile.TemporaryFile("w+") for _ in range(count)]  # noqa: SIM115
        self.all = [
            subprocess.Popen(
                [sys.executable, *map(str, arguments(i))], stdout=said, stderr=said, env=environment
            )
            for i, said in enumerate(self.said)
        ]

    def wait(self, seconds):
        """`(exit code, output)` of each; none is left, whatever happens."""
        end = time.monotonic() + seconds
        done = []
        try:
            for process, said in zip(self.all, self.said):
                code = process.wait(max(0.1, end - time.monotonic()))
                said.seek(0)
                done.append((code, said.read()))
        finally:
            self.kill()
        return done

    def kill(self):
        for process, said in zip(self.all, self.said):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            said.close()


@contextlib.contextmanager
def workers(what, folder, count=2):
    address = free_address()
    started = Processes(lambda i: [WORKER, address, count, i, what, folder], count)
    try:
        yield started
    finally:
        started.kill()


def finished(what, folder, count=2, seconds=60):
    """What each of the workers saw."""
    with workers(what, folder, count) as started:
        for code, text in started.wait(seconds):
            assert code == 0, text
    return [json.loads((folder / f"seen-{i}.json").read_text()) for i in range(count)]


def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.02)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The processes of one test compile what those of another have compiled already: they need not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


@functools.cache
def mesh():
    return ft.sharding.mesh(jax.devices()[:4], data=2, model=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes: its folder, and what they saw."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, finished("whole", folder, seconds=180)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run in this process, on four devices."""
    return worker.run(mesh(), tmp_path_factory.mktemp("alone"), epochs=2, checkpoint_every=3)


def assert_close(a, b, rtol=1e-6):
    flat, structure = jax.tree.flatten(a)
    other, structure_b = jax.tree.flatten(b)
    assert structure == structure_b
    np.testing.assert_allclose(np.array(flat), np.array(other), rtol=rtol, atol=1e-7)


def test_two_processes_see_the_same_and_what_one_sees(whole, alone):
    _, (first, second) = whole
    assert first["devices"] == second["devices"] == 4
    for seen in (first, second):
        assert_close({k: seen[k] for k in alone}, alone)
    assert {k: first[k] for k in alone} == {k: second[k] for k in alone}
    assert alone["history"]["loss"][1] < alone["history"]["loss"][0]


def test_a_population_may_span_processes(whole, tmp_path):
    _, seen = whole
    together = worker.populated(ft.sharding.mesh(jax.devices()[:4], members=4, data=1), tmp_path)
    for other in seen:
        assert_close(other["population"], together)
    rates = np.array(together["rates"])
    assert rates.shape == (3, 4)
    assert len(np.unique(rates[-1])) > 1
    assert (rates[-1] != rates[0]).any()


def test_each_process_brings_its_share(whole):
    _, seen = whole
    x, y = worker.X[:10], worker.Y[:10]
    for pieces in (s["pieces"] for s in seen):
        # Shares of 3 and 7 rows, each padded to 7, on one part of the data axis each.
        assert pieces["rows"] == [14, 18, 10]
        assert pieces["weight"] == [1] * 3 + [0] * 4 + [1] * 7
        want = np.concatenate([x[:3], np.zeros((4, 8)), x[3:]])
        np.testing.assert_array_equal(np.array(pieces["x"], np.float32), want.astype(np.float32))
        np.testing.assert_allclose(pieces["losses"][0], pieces["losses"][1], rtol=1e-6)
        assert not pieces["up_is_whole"]
    state = ft.init_state(worker.TASK, worker.init_params, key=1)
    want = np.mean((np.tanh(x @ state.params["up"]) @ state.params["down"] - y) ** 2)
    np.testing.assert_allclose(seen[0]["pieces"]["losses"][0], want, rtol=1e-6)
    for s in seen:
        np.testing.assert_allclose(s["pieces"]["up"], state.params["up"], rtol=1e-6)


def test_what_two_processes_saved_one_restores_on_any_devices(whole):
    folder, (seen, _) = whole
    checkpoints = ft.Checkpointer(folder / "checkpoints")
    assert checkpoints.latest_step == seen["step"] == 8
    # Each process wrote its own parts: there are digests of four, and files of two.
    parts = json.loads((folder / "checkpoints" / "8" / "meta" / "checkpoint.json").read_text())["arrays"]
    assert len(parts["state/params/up"]["parts"]) == 4
    assert {p.name for p in (folder / "checkpoints" / "8" / "arrays").glob("ocdbt.*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }
    for where in (None, mesh(), ft.sharding.mesh(data=8)):
        rules = worker.RULES if where is mesh() else None
        like = ft.init_state(worker.TASK, worker.init_params, key=5, mesh=where, rules=rules)
        state = checkpoints.restore(like)
        np.testing.assert_array_equal(state.params["up"], np.array(seen["params"]["up"], np.float32))
        assert state.params["up"].sharding == like.params["up"].sharding
        values = ft.evaluate(worker.TASK, state, {"x": worker.X, "y": worker.Y}, batch_size=7)
        assert_close(values, seen["evaluated"])
        assert np.array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(1)))


def test_a_state_that_no_mesh_spreads_is_no_run_of_several(whole):
    _, seen = whole
    assert all("each of the 2 processes would train by itself" in s["alone"] for s in seen)


def test_one_file_each_is_written_once(whole):
    folder, (seen, _) = whole
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["loss"] for row in rows] == seen["history"]["loss"]
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3


def test_a_damaged_part_is_found(whole, tmp_path):
    folder, _ = whole
    checkpoints = ft.Checkpointer(folder / "checkpoints")
    path = folder / "checkpoints" / "8" / "meta" / "checkpoint.json"
    text = path.read_text()
    document = json.loads(text)
    document.pop("sha256")
    document["arrays"]["state/params/up"]["parts"][2][1] ^= 1
    from fntrain.checkpoint.pack import canonical as _canonical

    try:
        path.write_text(
            json.dumps({"sha256": hashlib.sha256(_canonical(document).encode()).hexdigest(), **document})
        )
        with pytest.raises(ft.CheckpointCorruptError, match="params/up"):
            checkpoints.restore(ft.init_state(worker.TASK, worker.init_params), step=8)
    finally:
        path.write_text(text)


def test_a_signal_to_one_saves_on_both_and_four_devices_go_on(tmp_path):
    with workers("long", tmp_path) as started:
        for i in range(2):
            wait_for(tmp_path / f"mark-{i}")
        started.all[1].send_signal(signal.SIGTERM)
        done = started.wait(40)
    for code, text in done:
        assert code == 143, text
    assert not list(tmp_path.glob("seen-*"))
    saved = ft.Checkpointer(tmp_path / "checkpoints").latest_step
    assert saved >= 6
    resumed = worker.run(mesh(), tmp_path, steps=saved + 3, resume=True)
    assert resumed["step"] == saved + 3
    # Neither a step too many nor one too few was taken: the same as a run without the signal.
    straight = ft.fit(
        worker.TASK, worker.start(mesh()), {"x": worker.X, "y": worker.Y}, steps=saved + 3, **worker.FIT
    )
    assert_close(
        resumed["params"],
        jax.tree.map(np.ndarray.tolist, ft.sharding.to_host(straight.state.params)),
        rtol=1e-4,
    )


def test_a_killed_process_ends_the_others_and_the_run_resumes(tmp_path, whole):
    began = time.monotonic()
    with workers("killed", tmp_path) as started:
        (code, text), (killed, _) = started.wait(40)
    assert killed == -signal.SIGKILL
    assert code != 0
    assert time.monotonic() - began < 30
    # Whichever notices first: the connection that is gone, or the heartbeat that stays away.
    assert re.search("Gloo .* failed|heartbeat|unhealthy|another task died", text), text
    assert max(ft.Checkpointer(tmp_path / "checkpoints").steps()) in (3, 4)
    resumed = finished("resumed", tmp_path)
    _, seen = whole
    for a, b in zip(resumed, seen):
        assert a["params"] == b["params"]  # the very bits
        assert a["history"] == b["history"]


def test_what_one_process_began_two_go_on_with_at_the_same_example(tmp_path, alone):
    begun = worker.run(mesh(), tmp_path, steps=6)  # inside the second epoch
    assert begun["step"] == 6
    first, second = finished("resumed", tmp_path)
    assert first["params"] == second["params"]
    for seen in (first, second):
        assert_close({k: seen[k] for k in alone}, alone, rtol=1e-5)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["overridden"] == [{"step": 6, "changes": ["processes: saved 1, now 2"]}]
    assert (config["processes"], config["cut"]) == (2, [[0, 0, 8]])


def test_an_exception_in_one_ends_the_others_at_once(tmp_path):
    began = time.monotonic()
    with workers("raises", tmp_path) as started:
        (other, _), (raised, text) = started.wait(40)
    assert raised == 1
    assert "RuntimeError: out of luck" in text
    assert other != 0
    assert time.monotonic() - began < 30


def python(code, seconds=60):
    started = Processes(lambda _: ["-c", code], 1, {"JAX_PLATFORMS": "cpu"})
    ((code, text),) = started.wait(seconds)
    return code, text


def test_a_process_that_never_comes_is_not_waited_for_for_ever():
    began = time.monotonic()
    code, text = python(
        f"import fntrain as ft; ft.sharding.initialize('{free_address()}', 2, 0, initialization_timeout=2)"
    )
    assert code != 0
    assert "DEADLINE_EXCEEDED" in text or "timed out" in text.lower()
    assert time.monotonic() - began < 30


def test_what_is_not_there_to_be_joined_and_what_comes_too_late_is_said(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "JAX_COORD", "TPU_", "KUBERNETES")):
            monkeypatch.delenv(name)
    code, text = python("""
import jax, fntrain as ft
def said(*arguments):
    try:
        ft.sharding.initialize(*arguments)
    except ft.ConfigError as error:
        print(error)
said()
said("host:1234")
jax.devices()
said("127.0.0.1:1", 2, 0)
""")
    assert code == 0, text
    nothing, half, late = text.splitlines()
    assert "no cluster was found" in nothing
    assert "says `num_processes` and `process_id`" in half
    assert "`initialize` must be called first" in late


def test_a_cluster_says_everything_by_itself():
    job = dict(SLURM_JOB_ID="7", SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2")
    job["JAX_COORDINATOR_PORT"] = free_address().split(":")[1]
    code = """
import os, sys
os.environ.update(JAX_PLATFORMS="cpu", SLURM_PROCID=sys.argv[1], SLURM_LOCALID=sys.argv[1])
import jax, fntrain as ft
ft.sharding.initialize()
print("process", jax.process_index(), "of", jax.process_count(), ft.sharding.mesh(data=-1).shape["data"])
"""
    for i, (status, text) in enumerate(Processes(lambda i: ["-c", code, i], 2, job).wait(60)):
        assert status == 0, text
        assert f"process {i} of 2 2\n" in text


def test_arguments_that_fit_nothing_are_named():
    for arguments, message in [
        (("host", 2, 0), "`coordinator_address` must be"),
        (("host:99999", 2, 0), "`coordinator_address` must be"),
        ((1234, 2, 0), "`coordinator_address` must be"),
        (("host:1234", 2, 2), "`process_id` counts from 0"),
        (("host:1234", 0, 0), "`num_processes` must be"),
        (("host:1234", 2, -1), "`process_id` must be"),
    ]:
        with pytest.raises(ft.ConfigError, match=message):
            ft.sharding.initialize(*arguments)
    ft.sharding.initialize(num_processes=1)


def test_to_host_in_one_process():
    state = worker.start(mesh())
    host = ft.sharding.to_host(state)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(host))
    np.testing.assert_array_equal(host.params["up"], state.params["up"])
    np.testing.assert_array_equal(host.key, jax.random.key_data(state.key))


def test_the_language_model_is_the_same_on_one_device_on_eight_and_in_two_processes():
    def bits(text):
        (line,) = re.findall(r"^bits a byte, epoch by epoch: (.*)$", text, re.M)
        return [float(x) for x in line.split()]

    example = [ROOT / "examples" / "sharded_lm.py", "--rows", 64, "--epochs", 2]
    address = free_address()

    def joined(i):
        return [
            *example,
            "--virtual",
            2,
            "--model",
            2,
            "--address",
            address,
            "--processes",
            2,
            "--process",
            i,
        ]

    runs = [
        Processes(lambda _: [*example, "--virtual", 1], 1).wait(120),
        Processes(lambda _: [*example, "--virtual", 8, "--model", 2], 1).wait(120),
        Processes(joined, 2).wait(120),
    ]
    results = []
    for code, text in (done for run in runs for done in run):
        assert code == 0, text
        results.append(bits(text))
    assert len(results) == 4
    assert results[0][1] < results[0][0] < 8
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-5)
