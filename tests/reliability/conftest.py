"""Servers that fork the runs to be killed, sizes (a slice in every run of the tests, the whole on demand), figures.

`pytest tests/reliability -m reliability -n 2` runs the whole. With `RELIABILITY_JSON=file` its figures are written
there; those of tests that have one size are in the ordinary run, so `-m ""` with that variable writes them too.
"""

import contextlib
import fcntl
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    if "reliability" in (config.option.markexpr or ""):
        return
    whole = [item for item in items if item.get_closest_marker("reliability")]
    if whole:
        config.hook.pytest_deselected(items=whole)
        items[:] = [item for item in items if item not in whole]


class Server:
    """One forking process; one job at a time."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "log"
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
            "JAX_ENABLE_COMPILATION_CACHE": "1",
        }
        limits = {
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        environment = {**os.environ, **cache, **limits, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "_run.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.pid = None

    def start(self, job, **arguments):
        """Fork; the job runs."""
        assert self.pid is None, "a job is running"
        self.log.write_text("")
        arguments = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in arguments.items()}
        print(
            json.dumps({"job": job, "log": str(self.log), **arguments}), file=self.process.stdin, flush=True
        )
        self.pid = json.loads(self.process.stdout.readline())["pid"]
        self.began = time.monotonic()
        return self.pid

    def wait(self, seconds=120):
        """The job's exit code, negative for a signal; a job that takes longer has failed the test."""
        timer = threading.Timer(seconds, self.kill)
        timer.start()
        code = json.loads(self.process.stdout.readline())["code"]
        hung = not timer.is_alive()
        timer.cancel()
        self.pid = None
        assert not hung, f"no end after {seconds} s:\n{self.log.read_text()[-3000:]}"
        return code

    def run(self, job, seconds=120, **arguments):
        self.start(job, **arguments)
        return self.wait(seconds)

    def kill(self, number=signal.SIGKILL):
        """Send a signal, if the job still runs."""
        with contextlib.suppress(ProcessLookupError, TypeError):
            os.kill(self.pid, number)

    @property
    def alive(self):
        """Whether the job still runs."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def close(self):
        self.kill()
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """`servers(n)`: n servers, which live as long as the session."""
    root = tmp_path_factory.mktemp("servers")
    found = []

    def get(n=1):
        while len(found) < n:
            folder = root / str(len(found))
            folder.mkdir()
            found.append(Server(folder))
        return found[:n]

    yield get
    for server in found:
        server.close()


@pytest.fixture
def server(servers):
    (one,) = servers(1)
    return one


@pytest.fixture(scope="session")
def program():
    """`_run.py` as a module."""
    spec = importlib.util.spec_from_file_location("reliability_run", HERE / "_run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def record(request):
    """`record("R1", kills=200, …)`: the figures of a test, printed, and kept where RELIABILITY_JSON says."""
    start = time.monotonic()

    def write(name, **figures):
        entry = {**figures, "seconds": round(time.monotonic() - start, 1)}
        slice_of_it = hasattr(request.node, "callspec") and not request.node.get_closest_marker("reliability")
        whole = not slice_of_it
        print(json.dumps({name: entry, "whole": whole}))
        target = os.environ.get("RELIABILITY_JSON")
        if target and whole:
            with open(f"{target}.lock", "w") as guard:
                fcntl.flock(guard, fcntl.LOCK_EX)
                path = Path(target)
                everything = json.loads(path.read_text()) if path.exists() else {}
                everything[name] = entry
                everything["machine"] = {
                    "cores": os.cpu_count(),
                    "python": platform.python_version(),
                    "jax": jax.__version__,
                }
                path.write_text(json.dumps(dict(sorted(everything.items())), indent=2) + "\n")

    return write
