"""One file of weights: it round-trips bitwise, other programs read it, and no damage is believed."""

import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import fntrain as ft
from fntrain.checkpoint.safetensors import export, load

safetensors = pytest.importorskip("safetensors.numpy")


class Pair(NamedTuple):
    first: object
    second: object


def bits(tree):
    def one(x):
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return np.asarray(x).dtype.name, np.shape(x), np.asarray(x).tobytes()

    return {path: one(x) for path, x in ft.tree.items(tree)}


DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float8_e4m3fn", "float8_e5m2",
          "float16", "bfloat16", "float32", "complex64"]  # fmt: skip


def test_every_dtype_and_node_comes_back(tmp_path):
    params = {
        "dtypes": {name: jnp.array([0, 1, 2, -1], jnp.float32).astype(name) for name in DTYPES},
        "wide": np.array([1.5, np.nan, -0.0, 5e-324]),
        "layers": [{"w": jnp.arange(6.0).reshape(2, 3)}, (jnp.ones(()), None, ())],
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "empty": jnp.zeros((0, 3)),
        "key": jax.random.key(3),
        "names": {"a/b": jnp.ones(1), "": jnp.ones(2), "é": jnp.ones(3), "$x": jnp.ones(4)},
        7: jnp.ones(5),
    }
    params = {str(k): v for k, v in params.items()}
    export(params, tmp_path / "new" / "file.safetensors")
    back = load(tmp_path / "new" / "file.safetensors")
    assert bits(back) == bits(params)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert isinstance(back["dtypes"]["bfloat16"], jax.Array)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file.safetensors"]
    export(jnp.arange(3), tmp_path / "one")  # a tree that is one array
    assert load(tmp_path / "one").tolist() == [0, 1, 2]


def test_other_programs_read_it_and_theirs_are_read(tmp_path):
    export({"a": [{"w": np.arange(4, dtype=np.float32)}], "b": np.int32(3)}, tmp_path / "ours")
    read = safetensors.load_file(tmp_path / "ours")
    assert {name: x.tolist() for name, x in read.items()} == {"a/0/w": [0, 1, 2, 3], "b": 3}
    theirs = {"model.layers.0.weight": np.arange(3, dtype=np.float16), "x/y": np.ones(2)}
    safetensors.save_file(theirs, tmp_path / "theirs", {"format": "np"})
    back = load(tmp_path / "theirs")
    assert {name: np.asarray(x).tolist() for name, x in back.items()} == {
        "model.layers.0.weight": [0, 1, 2], "x/y": [1, 1]
    }  # fmt: skip
    nested = load(
        tmp_path / "theirs", {"model.layers.0.weight": np.zeros(3, np.float16), "x": {"y": np.zeros(2)}}
    )
    assert nested["x"]["y"].tolist() == [1, 1]


def test_like_is_strict_and_decides_types_and_shardings(tmp_path):
    mesh = Mesh(np.array(jax.devices()), ("d",))
    split = NamedSharding(mesh, P("d"))
    params = Pair(jnp.arange(16.0), {"b": jnp.ones(2, jnp.bfloat16)})
    export(params, tmp_path / "file")
    like = Pair(jax.device_put(jnp.zeros(16), split), {"b": jax.ShapeDtypeStruct((2,), jnp.bfloat16)})
    like = like._replace(second={"b": jnp.zeros(2, jnp.bfloat16)})
    back = load(tmp_path / "file", like)
    assert isinstance(back, Pair)
    assert back.first.sharding == split
    assert bits(back) == bits(params)
    with pytest.raises(ft.CheckpointMismatchError) as error:
        load(tmp_path / "file", Pair(jnp.zeros(15), {"b": jnp.ones(2), "c": jnp.ones(1)}))
    table = {line.split()[0]: line.split()[-1] for line in str(error.value).splitlines()[2:]}
    assert (table["first"], table["second/b"], table["second/c"]) == ("shape", "dtype", "checkpoint")


def test_of_a_state_the_parameters(tmp_path):
    task = ft.Task(lambda p, b, ctx: ft.losses.mse(b @ p["w"], b[:, 0]), ft.optimizers.adam(0.1))
    state = ft.init_state(task, {"w": np.arange(2, dtype=np.float32)})
    export(state, tmp_path / "file")
    assert bits(load(tmp_path / "file", like=state.params)) == bits(state.params)
    with pytest.raises(ft.ConfigError, match=r"state\.params"):
        load(tmp_path / "file", like=state)
    with_statistics = ft.init_state(task, {"w": np.ones(2, np.float32)}, model_state={"mean": np.zeros(2)})
    with pytest.raises(ft.ConfigError, match="`model_state`"):
        export(with_statistics, tmp_path / "file")


def test_what_cannot_be_stored_is_named_and_the_old_file_stays(tmp_path):
    file = tmp_path / "file"
    export({"w": np.ones(1)}, file)
    before = file.read_bytes()
    for state, message in [
        ({"f": len}, "`f` must be an array"),
        ({"z": np.ones(1, np.complex128)}, "`z` has dtype complex128"),
        ({"i": jnp.ones(2, jnp.int4)}, "`i` has dtype int4"),
        ({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, "two leaves have the path `a/b`"),
        ({"__metadata__": np.ones(1)}, "`__metadata__`"),
        ({"\ud800": np.ones(1)}, "no text"),
    ]:
        with pytest.raises(ft.ConfigError, match=message):
            export(state, file)
    (tmp_path / "in the way").write_text("")
    with pytest.raises(ft.CheckpointError, match="cannot write"):
        export({"w": np.ones(1)}, tmp_path / "in the way" / "file")
    assert file.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_such_file_or_damaged(tmp_path):
    with pytest.raises(ft.CheckpointError, match="No such file"):
        load(tmp_path / "nowhere")
    with pytest.raises(ft.CheckpointError, match="cannot read"):
        load(tmp_path)
    for content in (b"", b"\x80\x04K\x01.", b"{}", bytes(100)):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ft.CheckpointError, match=r"not a whole safetensors file.*nothing unpickled"):
            load(tmp_path / "file")
    export({"w": np.arange(50.0), "v": np.ones(3)}, tmp_path / "file")
    content = bytearray((tmp_path / "file").read_bytes())
    content[-30] ^= 1  # in an array
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ft.CheckpointCorruptError, match=r"digest disagrees for `[vw]`"):
        load(tmp_path / "file")


def test_without_the_library_the_error_says_what_to_install():
    script = (
        "import sys; sys.modules['safetensors'] = None\n"
        "import fntrain as ft; from fntrain.checkpoint.safetensors import load\n"
        "try: load('x')\nexcept ft.ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert 'pip install "fntrain[export]"' in done.stdout
