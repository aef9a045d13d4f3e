"""`fntrain new DIR`: a small project of one's own, which trains at once."""

import argparse
import shlex
from pathlib import Path

from .._core.errors import ConfigError
from .._core.files import write_text
from .parser import Commands

MODELS = ("plain", "nnx", "equinox")
DATA = ("arrays", "iterable")


def add(commands: Commands) -> None:
    """Add the command."""
    made = commands.add(
        "new", _new, "Write a small project of your own: a program, its test, a place for runs."
    )
    made.add_argument("path", type=Path, metavar="DIR", help="the directory to make")
    made.add_argument(
        "--model", choices=MODELS, default="plain", metavar="NAME", help=_usual(MODELS, "the model is")
    )
    made.add_argument(
        "--data", choices=DATA, default="arrays", metavar="NAME", help=_usual(DATA, "the data are")
    )


def _usual(choices: tuple[str, ...], what: str) -> str:
    return f"what {what}, {' or '.join(', '.join(choices).rsplit(', ', 1))} (default: {choices[0]})"


def _new(args: argparse.Namespace) -> int:
    if args.path.exists() and (not args.path.is_dir() or any(args.path.iterdir())):
        raise ConfigError(f"{args.path} is there already, and not empty; give a directory that is not")
    args.path.mkdir(parents=True, exist_ok=True)
    for name, text in project(args.model, args.data).items():
        write_text(args.path / name, text)
        print(args.path / name)
    print(
        f"\nnext\n  cd {shlex.quote(str(args.path))} && python train.py\n  fntrain inspect runs/one\n  pytest"
    )
    return 0


def project(model: str, data: str) -> dict[str, str]:
    """The project's files: name -> text."""
    imports, network = _MODEL[model]
    program = _PROGRAM.format(imports=imports, data=_DATA[data], model=network, rows=_ROWS[data])
    return {"train.py": program, "test_train.py": _TEST, ".gitignore": "/runs/\n__pycache__/\n"}


_PROGRAM = '''"""Learns to tell two spirals apart. Put your data into `load`, your model into `make_model`.

Run it: python train.py; and again, to go on after it was stopped, at any time and in any way.
"""

{imports}

{data}

{model}

def make_task(model):
    return ft.supervised(
        model,
        "cross_entropy",
        "adamw",
        ["accuracy"],
        learning_rate=1e-2,
        clip_norm=1.0,
    )


def main(run_dir="runs/one", epochs=20):
    train, validation = load()
    model = make_model()
    task = make_task(model)
    state = ft.init_state(task, model.init, key=0)
    result = ft.fit(
        task,
        state,
        train,
        epochs=epochs,{rows}
        validation_data=validation,
        callbacks=[ft.callbacks.EarlyStopping("val_loss", patience=5)],
        keep_best="val_accuracy",
        run_dir=run_dir,
        resume=True,
    )
    _, row = result.best  # the state that was best, and its row
    print(f"validation accuracy {{row['val_accuracy']:.3f}}, after epoch {{row['epoch']}}")
    return row["val_accuracy"]


if __name__ == "__main__":
    main()
'''

_SPIRALS = '''def spirals(rows, seed):
    """Points of two spirals, `[rows, 2]`, and which of the two each is of, `[rows]`."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    angle = rng.uniform(0.5, 3, rows)
    x = np.stack([np.cos(angle * 2 + np.pi * label), np.sin(angle * 2 + np.pi * label)], 1) * angle[:, None]
    return (x + rng.normal(0, 0.3, x.shape)).astype(np.float32), label.astype(np.int32)


'''

_DATA = {
    "arrays": _SPIRALS
    + '''def load():
    """`(train, validation)`, each `(inputs, targets)`: any tree of arrays with a row for each example."""
    return ft.split(spirals(2000, seed=0), 0.8)
''',
    "iterable": _SPIRALS
    + '''def load():
    """`(train, validation)`: batches; `train(epoch)` makes those of an epoch, always the same ones."""

    def train(epoch):
        for i in range(50):
            yield spirals(32, seed=(1, epoch, i))

    return train, [spirals(100, seed=(2, i)) for i in range(4)]
''',
}
_ROWS = {"arrays": "\n        batch_size=32,", "iterable": ""}

_MODEL = {
    "plain": (
        "import fntrain as ft\nimport jax\nimport jax.numpy as jnp\nimport numpy as np\n",
        """def init(key):
    first, second, third = jax.random.split(key, 3)
    he = jax.nn.initializers.he_normal()
    return {
        "first": {"kernel": he(first, (2, 64)), "bias": jnp.zeros(64)},
        "second": {"kernel": he(second, (64, 64)), "bias": jnp.zeros(64)},
        "last": {"kernel": he(third, (64, 2)), "bias": jnp.zeros(2)},
    }


def apply(params, x):
    for name in ("first", "second"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["last"]["kernel"] + params["last"]["bias"]


def make_model():
    return ft.models.plain(init, apply)
""",
    ),
    "nnx": (
        "import fntrain as ft\nimport numpy as np\nfrom flax import nnx\n",
        """class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 64, rngs=rngs)
        self.second = nnx.Linear(64, 64, rngs=rngs)
        self.last = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.second(nnx.relu(self.first(x)))))


def make_model():
    return ft.models.nnx(Net)
""",
    ),
    "equinox": (
        "import equinox as eqx\nimport fntrain as ft\nimport numpy as np\n",
        """def make_model():
    return ft.models.equinox(lambda key: eqx.nn.MLP(2, 2, 64, depth=2, key=key))
""",
    ),
}

_TEST = '''"""Does it still learn? Run it: pytest"""

import train


def test_it_learns(tmp_path):
    assert train.main(tmp_path / "run", epochs=4) > 0.8
'''
