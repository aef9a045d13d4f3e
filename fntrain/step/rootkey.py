"""A run's root key as a state holds it: its words, an array as all others, which are read as a typed key."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core.check import is_concrete


class Words(NamedTuple):
    """The words of a key, and of which kind they are."""

    impl: Any
    words: Any


_IMPLEMENTATIONS: dict[Any, Any] = {}  # by the dtype of keys: asked for at every step


class RootKey:
    """A field that is given and read as a typed key, and is held as its words.

    Typed keys are arrays that NumPy, Chex and the outputs of `jit` know nothing of, or take the slow way round for.
    Words that are no array of JAX's (NumPy's, a sharding in the place of one) are read as what they are.
    """

    def __get__(self, state: Any, owner: Any = None) -> Any:
        if state is None:
            raise AttributeError("key")  # there is no default
        held = state.__dict__
        if "_typed" not in held:
            held["_typed"] = _typed(*held["_words"])
        return held["_typed"]

    def __set__(self, state: Any, key: Any) -> None:
        held = state.__dict__
        held.pop("_typed", None)
        if isinstance(key, Words):
            held["_words"] = key
        elif hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            held["_words"], held["_typed"] = words_of(key), key
        else:
            held["_words"] = Words(str(jax.config.jax_default_prng_impl), key)  # type: ignore[attr-defined]


def words_of(key: Any) -> Words:
    """A typed key's implementation and its words, of a form of one too."""
    impl = _IMPLEMENTATIONS.get(key.dtype)
    if impl is None:
        impl = _IMPLEMENTATIONS[key.dtype] = jax.random.key_impl(key)
    if isinstance(key, jax.ShapeDtypeStruct):
        form = jax.eval_shape(jax.random.key_data, key)
        return Words(impl, jax.ShapeDtypeStruct(form.shape, form.dtype, sharding=key.sharding))
    words = getattr(key, "_base_array", None)  # what key_data reads, without a dispatch
    return Words(impl, jax.random.key_data(key) if words is None or not is_concrete(key) else words)


def _typed(impl: Any, words: Any) -> Any:
    if isinstance(words, jax.ShapeDtypeStruct):
        form = jax.eval_shape(lambda x: jax.random.wrap_key_data(x, impl=impl), words)
        return jax.ShapeDtypeStruct(form.shape, form.dtype, sharding=words.sharding)
    if not isinstance(words, jax.Array) or words.dtype != jnp.uint32:
        return words
    return jax.random.wrap_key_data(words, impl=impl)
