"""Every optimizer and transform of optax and optax.contrib, as somebody would write it; with what it needs said."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import optax
from optax import contrib

KEY = jax.random.key(0)


def even(step):
    return step % 2 == 0


def matrices(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def kinds(params):
    return jax.tree.map(lambda x: "mv"[x.ndim < 2], params)


def dpsgd():
    key = {"key": KEY} if "key" in inspect.signature(contrib.dpsgd).parameters else {"seed": 0}
    with warnings.catch_warnings():  # optax 0.2.6 asks for a name that its signature does not have
        warnings.simplefilter("ignore", DeprecationWarning)
        return contrib.dpsgd(1e-2, 1.0, 1.0, **key)


ROWS = {
    "adabelief": lambda: optax.adabelief(1e-2),
    "adadelta": lambda: optax.adadelta(1e-1),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=8),
    "adagrad": lambda: optax.adagrad(1e-2),
    "adam": lambda: optax.adam(1e-2),
    "adamax": lambda: optax.adamax(1e-2),
    "adamaxw": lambda: optax.adamaxw(1e-2),
    "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(1e-2, 10)),
    "adan": lambda: optax.adan(1e-2),
    "adaptive_grad_clip": lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(1e-2)),
    "add_noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, KEY), optax.sgd(1e-2)),
    "amsgrad": lambda: optax.amsgrad(1e-2),
    "apply_every": lambda: optax.chain(optax.apply_every(2), optax.sgd(1e-2)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(1e-2), 3),
    "centralize": lambda: optax.chain(optax.centralize(), optax.sgd(1e-2)),
    "clip_by_block_rms": lambda: optax.chain(optax.clip_by_block_rms(0.1), optax.sgd(1e-2)),
    "conditionally_mask": lambda: optax.conditionally_mask(optax.sgd(1e-2), even),
    "ema": lambda: optax.chain(optax.ema(0.9), optax.sgd(1e-2)),
    "flatten": lambda: optax.flatten(optax.adam(1e-2)),
    "fromage": lambda: optax.fromage(1e-2),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "keep_params_nonnegative": lambda: optax.chain(optax.sgd(1e-2), optax.keep_params_nonnegative()),
    "lamb": lambda: optax.lamb(1e-2),
    "lars": lambda: optax.lars(1e-2),
    "lbfgs": lambda: optax.lbfgs(),
    "lion": lambda: optax.lion(1e-3),
    "masked": lambda: optax.masked(optax.sgd(1e-2), matrices),
    "multi_transform": lambda: optax.multi_transform({"m": optax.adam(1e-2), "v": optax.sgd(1e-2)}, kinds),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2), 2),
    "noisy_sgd": lambda: optax.noisy_sgd(1e-2, key=KEY),
    "normalize_by_update_norm": lambda: optax.chain(optax.normalize_by_update_norm(), optax.scale(-1e-2)),
    "novograd": lambda: optax.novograd(1e-2),
    "optimistic_adam_v2": lambda: optax.optimistic_adam_v2(1e-2),
    "optimistic_gradient_descent": lambda: optax.optimistic_gradient_descent(1e-2),
    "polyak_sgd": lambda: optax.polyak_sgd(),
    "radam": lambda: optax.radam(1e-2),
    "rmsprop": lambda: optax.rmsprop(1e-2),
    "rprop": lambda: optax.rprop(1e-2),
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
    "scale_by_stddev": lambda: optax.chain(optax.scale_by_stddev(), optax.scale(-1e-2)),
    "sgd": lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "signum": lambda: optax.signum(1e-3),
    "sign_sgd": lambda: optax.sign_sgd(1e-3),
    "sm3": lambda: optax.sm3(1e-2),
    "yogi": lambda: optax.yogi(1e-2),
    "zero_nans": lambda: optax.chain(optax.zero_nans(), optax.sgd(1e-2)),
    "acprop": lambda: contrib.acprop(1e-2),
    "ademamix": lambda: contrib.ademamix(1e-2),
    "adopt": lambda: contrib.adopt(1e-2),
    "cocob": lambda: contrib.cocob(),
    "dadapt_adamw": lambda: contrib.dadapt_adamw(),
    "dog": lambda: contrib.dog(),
    "dowg": lambda: contrib.dowg(),
    "galore": lambda: contrib.galore(1e-2, rank=4),
    "madgrad": lambda: contrib.madgrad(1e-2),
    "mechanize": lambda: contrib.mechanize(optax.sgd(1e-2)),
    "momo": lambda: contrib.momo(1e-2),
    "momo_adam": lambda: contrib.momo_adam(1e-2),
    "muon": lambda: contrib.muon(1e-2),
    "prodigy": lambda: contrib.prodigy(),
    "reduce_on_plateau": lambda: optax.chain(optax.sgd(1e-2), contrib.reduce_on_plateau(patience=1)),
    "sam": lambda: contrib.sam(optax.sgd(1e-2), optax.sgd(1e-2), sync_period=2),
    "sam opaque": lambda: contrib.sam(optax.sgd(1e-2), optax.sgd(1e-2), opaque_mode=True),
    "schedule_free_sgd": lambda: contrib.schedule_free_sgd(1e-2),
    "schedule_free_adamw": lambda: contrib.schedule_free_adamw(1e-2),
    "simplified_ademamix": lambda: contrib.simplified_ademamix(1e-3),
    "sophia": lambda: contrib.sophia(1e-3),
    "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(optax.adam(1e-2)),
}
REFUSED = {
    # What a step does not have, or that takes other parameters than a tree of arrays.
    "dpsgd": (dpsgd, "one gradient an example"),
    "lookahead": (lambda: optax.lookahead(optax.sgd(1e-2), 2, 0.5), "cannot be used here"),
    "a state that grows": (
        lambda: optax.GradientTransformation(
            lambda p: {"n": jnp.zeros((), jnp.int32)}, lambda u, s, p=None: (u, {**s, "more": s["n"]})
        ),
        "changes the type of its state",
    ),
}
EVALUATES = {"lbfgs", "backtracking", "sophia", "sam opaque"}
HOLDS = {"MultiSteps", "apply_every"}
# Those for which the door has had to know something; the others differ in their arithmetic.
SPECIAL = {
    *EVALUATES,
    *HOLDS,
    "adafactor",
    "apply_if_finite",
    "conditionally_mask",
    "galore",
    "inject_hyperparams",
    "masked",
    "momo",
    "multi_transform",
    "muon",
    "noisy_sgd",
    "polyak_sgd",
    "reduce_on_plateau",
    "sam",
    "schedule_free_adamw",
    "schedule_free_sgd",
}
