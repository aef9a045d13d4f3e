"""Device meshes with named axes, and what is asked of them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from .._core.errors import ConfigError


def mesh(devices: Sequence[Any] | None = None, **axes: int) -> Mesh:
    """A device mesh with named axes.

    Args:
      devices: the devices to use; None is all.
      **axes: size by name, in order; one may be -1, what is left. Without any, `data=-1, model=1`.

    Raises:
      ConfigError: if the sizes do not multiply to the number of devices.

    Examples:
      >>> import fntrain as ft
      >>> ft.sharding.mesh(data=-1).axis_names
      ('data',)
    """
    if isinstance(devices, str | int) or not (devices is None or hasattr(devices, "__iter__")):
        raise ConfigError(
            f"`devices` must be a list of JAX devices or None, got {devices!r}; axes go by name, `mesh(data=-1)`"
        )
    axes = axes or {"data": -1, "model": 1}
    devices = list(jax.devices() if devices is None else devices)
    sizes = list(axes.values())
    if any(isinstance(s, bool) or not isinstance(s, int) or (s < 1 and s != -1) for s in sizes):
        raise ConfigError(f"mesh axes must be integers >= 1, or -1 for what is left, got {axes}")
    if sizes.count(-1) > 1:
        raise ConfigError(f"only one mesh axis may be -1, got {axes}")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // -int(np.prod(sizes)))
    if int(np.prod(sizes)) != len(devices):
        asked = int(np.prod(sizes))
        fix = (
            "`data=-1` takes what is there, and on a CPU `jax.config.update('jax_num_cpu_devices', {})` first makes "
            "as many"
        )
        if asked < len(devices):
            fix = "`devices=jax.devices()[:{}]` takes as many"
        raise ConfigError(
            f"mesh axes {axes} must multiply to the {len(devices)} devices at hand, got {asked}: {fix.format(asked)}"
        )
    auto = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes), tuple(axes), axis_types=auto, devices=devices)


def data_axis(mesh: Mesh) -> str:
    """The axis that batches are split over: `"data"`, or the mesh's first."""
    return "data" if "data" in mesh.axis_names else mesh.axis_names[0]
