"""A test setup that lets no sloppiness through: 8 CPU devices, strict promotion, warnings are errors."""

import collections
import gc
import inspect
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest
from jax._src import compiler

jax.config.update("jax_num_cpu_devices", int(os.environ.get("JAX_NUM_CPU_DEVICES", "8")))
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Who wrote each operation, in full, is a tenth of the time that lowering takes, and nobody reads it here.
jax.config.update("jax_include_full_tracebacks_in_locations", False)
# What was compiled once is not compiled again, by another worker or in another run.
KEPT = {
    "jax_compilation_cache_dir": str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in KEPT.items():
    jax.config.update(name, value)


# Most of the suite's time is the compiler's, and most of that goes into machine code that runs for milliseconds. So it
# compiles hastily, but for what compares the bits of different programs, or looks at programs, their memory or their
# time. JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles everything as users do, and 1 everything hastily.
AS_USERS_DO = (
    "checkpoint/test_formats.py",
    "data/test_resident.py",
    "losses/test_linear.py",
    "metrics/test_intervals.py",
    "metrics/test_metrics.py",
    "models/test_by_hand.py",
    "models/test_remat.py",
    "run/test_epoch.py",
    "run/test_fit.py",
    "run/test_memory.py",
    "run/test_throughput.py",
    "sharding/test_layout.py",
    "sharding/test_manual.py",
    "sharding/test_plan.py",
    "sharding/test_sharded.py",
    "step/",
    "test_precision.py",
    "tools/test_collectives.py",
    "tools/test_fit_memory.py",
    "tools/test_replay.py",
    "tools/test_timeline.py",
    "transforms/test_guard.py",
    "transforms/test_matrix.py",
    "transforms/test_quantize.py",
    "transforms/test_select.py",
    "transforms/test_transforms.py",
)
ASKED = "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ
# Besides what JAX has a name for: the emitters of fused loops take longer than all the rest of XLA together, and a
# program of some hundred lines is cut into 32 modules, for as many cores.
FLAGS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
HASTY_PROCESSES = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": " ".join(f"--{name}={value}".lower() for name, value in FLAGS.items()),
    **{name.upper(): str(value) for name, value in KEPT.items()},
}
# What says something on a GPU that it does not say on a CPU: programs, numbers, donation (`benchmarks/gpu.sh`).
ON_A_GPU = ("laws/", "losses/test_linear.py", "step/test_step.py", "step/test_state.py", "run/test_epoch.py")
TESTS = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    for item in items:
        if is_of(item.path, ON_A_GPU):
            item.add_marker(pytest.mark.gpu)
    thin_out(config, items)
    # Together: a worker that changes how it compiles forgets all programs. Of each kind what is slow comes first: none
    # waits for it at the end.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not is_of(item.path, AS_USERS_DO), item.path not in slow))


def is_of(path, group):
    return path.is_relative_to(TESTS) and str(path.relative_to(TESTS)).startswith(group)


def thin_out(config, items):
    """Of a `matrix`, the ordinary run takes every fourth row, and those that have ever been special."""
    if "matrix" in (config.option.markexpr or "") or any("[" in argument for argument in config.args):
        return  # asked for, or one row by its name
    seen, left_out = collections.Counter(), set()
    for item in items:
        matrix = item.get_closest_marker("matrix")
        if matrix is None or {str(x) for x in item.callspec.params.values()} & set(matrix.kwargs["always"]):
            continue
        if seen[item.location[0], item.originalname] % 4:
            left_out.add(item)
        seen[item.location[0], item.originalname] += 1
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item):
    """On fewer devices than eight, what builds a mesh is left out by name."""
    if jax.device_count() < 8 and isinstance(item, pytest.Function):
        text = inspect.getsource(item.function)
        if "mesh" in text or "jax.devices()" in text:
            pytest.skip(f"{item.originalname} needs 8 devices, got {jax.device_count()}")


def compile_options(*args, of=compiler.get_compile_options, **keywords):
    options = of(*args, **keywords)
    if jax.config.values["jax_disable_most_optimizations"]:
        options.env_option_overrides = [*options.env_option_overrides, *FLAGS.items()]
    return options


compiler.get_compile_options = compile_options


@pytest.fixture(autouse=True, scope="module")
def compiled_as_fits(request):
    """No program of one kind serves the other: a worker that changes forgets what it has compiled."""
    before = jax.config.values["jax_disable_most_optimizations"]
    fits = jax.default_backend() == "cpu" and not is_of(request.path, AS_USERS_DO)
    hastily = before if ASKED else fits
    if hastily != before:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", hastily)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HASTY_PROCESSES.items() if hastily else ():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True, scope="module")
def what_is_kept_is_not_looked_at_again():
    """JAX keeps what it has traced and compiled: each full collection of a later test would walk through all of it.

    A compiled program holds half a dozen mappings of memory, and Linux grants a process 65,530 of them: a worker that
    has compiled ten thousand programs dies of the next one, whichever test that is. So it forgets them in time.
    """
    yield
    if memory_mappings() > 30_000:
        jax.clear_caches()
        gc.unfreeze()
    gc.collect()
    gc.freeze()


def memory_mappings():
    try:
        return pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # not Linux: no such limit
        return 0
