"""What of a step an operation is a part of, and where a step's time goes by its trace."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft
from fntrain._core.errors import ConfigError
from fntrain.step.compiled import compiled
from fntrain.tools import profile, timeline as tracing

BATCH = np.ones((64, 64), np.float32)
PARAMS = {"w": np.ones((64, 64), np.float32)}


def loss_fn(params, batch, ctx):
    return ft.losses.mse(jnp.tanh(batch @ params["w"]), jnp.zeros(batch.shape))


TASK = ft.Task(loss_fn, ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-3)))


@pytest.mark.parametrize(
    ("scope", "part"),
    [
        ("jit(step)/jit(_train_step)/jvp(loss)/dot_general", "forward"),
        ("jit(step)/transpose(jvp(loss))/dot_general", "backward"),
        ("jit(f)/while/body/transpose(jvp(loss))/checkpoint/rematted_computation/tanh", "backward"),
        ("jit(step)/jit(_train_step)/optimizer/jit(norm_parts)/square", "optimizer"),
        ("jit(step)/optimizer/jvp(loss)/dot_general", "optimizer"),  # one that takes gradients of its own
        ("jit(step)/jvp(loss)/optimizer/mul", "forward"),  # a name of the user's
        ("jit(step)/metrics/concatenate", "metrics"),
        ("jit(step)/jit(_where)/select_n", None),
        ("", None),
    ],
)
def test_a_scope_is_part_of_what_its_outermost_name_says(scope, part):
    assert tracing.part_of(scope) == part


HLO = """HloModule jit_step
%fused (p: f32[2]) -> f32[2] {
  %p = f32[2] parameter(0)
  %a = f32[2] add(%p, %p), metadata={op_name="jit(s)/jvp(loss)/add"}
  %b = f32[2] add(%a, %a), metadata={op_name="jit(s)/jvp(loss)/add"}
  ROOT %c = f32[2] add(%b, %b), metadata={op_name="jit(s)/optimizer/add"}
}

ENTRY %main (q: f32[2]) -> f32[2] {
  %q = f32[2] parameter(0)
  %lonely = f32[2] copy(%q)
  %add_fusion.1 = f32[2] fusion(%q), kind=kLoop, calls=%fused, metadata={op_name="jit(s)/optimizer/add"}
  ROOT %d = f32[2] dot(%add_fusion.1, %q), metadata={op_name="jit(s)/transpose(jvp(loss))/dot"}
}
"""


def test_a_fusion_is_part_of_what_most_of_it_is():
    found = tracing.parts_of(HLO)
    assert (found["add_fusion.1"], found["d"]) == ("forward", "backward")
    assert "lonely" not in found


def event(name, start, duration, op=None):
    stats = [] if op is None else [("hlo_op", op)]
    return types.SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=stats)


def test_what_an_operation_contains_counts_by_itself():
    events = [
        event("while", 0, 100, "while.1"),
        event("dot", 10, 30, "dot.1"),
        event("cond", 50, 40, "cond.1"),
        event("mul", 60, 10, "mul.1"),
        event("end: dot", 40, 1, "dot.1"),
        event("dispatch", 0, 500),
        event("dot", 200, 5, "dot.1"),
    ]
    times = {}
    for name, seconds in tracing._own_times(events):
        times[name] = times.get(name, 0) + seconds
    want = {"while.1": 30e-9, "dot.1": 35e-9, "cond.1": 30e-9, "mul.1": 10e-9}
    assert times == pytest.approx(want)


@pytest.fixture(scope="module")
def state():
    return ft.init_state(TASK, PARAMS)


@pytest.fixture(scope="module")
def made(state):
    """A step compiled as users compile it, with names; what a cache holds may have none."""
    settings = {"jax_include_full_tracebacks_in_locations": True, "jax_enable_compilation_cache": False}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield compiled(TASK, state, BATCH, None)
    for name, value in before.items():
        jax.config.update(name, value)


def test_each_part_of_a_compiled_step_has_operations(made):
    parts = tracing.parts_of(made[1].as_text())
    assert set(parts.values()) == set(tracing.PARTS)
    dots = [part for name, part in parts.items() if name.startswith("dot")]
    assert set(dots) <= {"forward", "backward"}


def test_a_profile_is_of_the_trace_and_says_where_it_is_not(state, made, monkeypatch, tmp_path):
    monkeypatch.setattr(profile, "compiled", lambda *given: made)  # once is enough here
    times = ft.tools.profile_step(TASK, state, BATCH, repeats=3)
    assert times.how == "trace"
    assert min(times["forward_ms"], times["backward_ms"], times["optimizer_ms"], times["metrics_ms"]) > 0
    with ft.tools.trace(tmp_path) as path:
        within = ft.tools.profile_step(TASK, state, BATCH, repeats=1)
        with pytest.raises(ConfigError, match="one can be recorded at a time"), ft.tools.trace(tmp_path):
            pass
    assert within.how == "programs"
    assert "how='programs'" in repr(within)
    nameless = types.SimpleNamespace(as_text=lambda: HLO.replace("transpose", ""))
    monkeypatch.setattr(profile, "compiled", lambda *given: (None, nameless))
    assert ft.tools.profile_step(TASK, state, BATCH, repeats=1).how == "programs"
    assert list(path.rglob("*.trace.json.gz"))  # what Perfetto reads
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))


def test_a_trace_goes_into_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="`directory`"), ft.tools.trace(tmp_path / "file"):
        pass
