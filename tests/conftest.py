"""A test setup that lets no sloppiness through: 8 CPU devices, strict promotion, warnings are errors."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# What was compiled once is not compiled again, by another worker or in another run. Programs
# that tests start in processes of their own compile for themselves.
jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def what_is_kept_is_not_looked_at_again():
    """JAX keeps what it has traced and compiled: each full collection of a later test would walk through all of it."""
    yield
    gc.collect()
    gc.freeze()
