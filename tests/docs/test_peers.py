"""What the pages say of Lightning and the Trainer, beside them: the same weights and batches give the same losses.

A page's own pair of programs draws its weights and its order by itself; here both start from one model, in one order.
"""

import logging
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fntrain as ft

torch = pytest.importorskip("torch")

ROWS, SIZE, EPOCHS = 64, 8, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 8)).astype(np.float32)
Y = (np.sin(X.sum(1)) > 0).astype(np.int64)


class Net(torch.nn.Module):
    """A small classifier that keeps the losses of its batches."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = torch.nn.Linear(8, 16), torch.nn.Linear(16, 2)
        self.losses = []

    def forward(self, x, y):
        loss = torch.nn.functional.cross_entropy(self.b(torch.tanh(self.a(x))), y)
        self.losses.append(loss.item())
        return {"loss": loss}

    def weights(self):
        return {name: x.detach().numpy().copy() for name, x in self.named_parameters()}


def loss_fn(params, batch, ctx):
    x = jnp.tanh(batch["x"] @ params["a.weight"].T + params["a.bias"][None])
    return ft.losses.cross_entropy(x @ params["b.weight"].T + params["b.bias"][None], batch["y"])


def trained_by(peer, **options):
    """The losses and the last weights of a peer's run, in the order of the rows; the first weights."""
    net = Net()
    first = net.weights()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as directory:
        warnings.simplefilter("ignore")  # what another library warns of is its own
        peer(net, directory, **options)
    return net.losses, net.weights(), first


def ours(tx, first, rows=ROWS):
    task = ft.Task(loss_fn, tx)
    state, losses = ft.init_state(task, first), []
    for _ in range(EPOCHS):
        for batch, weight in ft.data_loader({"x": X[:rows], "y": Y[:rows]}, SIZE, shuffle=False):
            state, metrics = ft.train_step(task, state, batch, weight)
            losses.append(float(ft.compute_metrics(task, metrics)["loss"]))
    return losses, jax.tree.map(np.asarray, state.params)


def apart(these, those):
    """The largest difference between two runs, losses and last weights."""
    (losses, weights), (others, last) = these, those
    assert len(losses) == len(others)
    return max(
        np.abs(np.subtract(losses, others)).max(),
        *(np.abs(weights[name] - last[name]).max() for name in last),
    )


def by_lightning(net, directory, *, optimizer, clip, window, rows=ROWS):
    lightning = pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch, index):
            return self.net(*batch)["loss"]

        def configure_optimizers(self):
            return optimizer(self.parameters())

    data = torch.utils.data.TensorDataset(torch.tensor(X[:rows]), torch.tensor(Y[:rows]))
    lightning.Trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=window,
        gradient_clip_val=clip,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
    ).fit(Module(), torch.utils.data.DataLoader(data, SIZE))


def by_the_trainer(net, directory, *, window, callbacks=(), **options):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")  # without which it does not start

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def log(self, *_):
            """Nothing."""

    arguments = transformers.TrainingArguments(
        output_dir=directory,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=SIZE,
        gradient_accumulation_steps=window,
        report_to=[],
        remove_unused_columns=False,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    data = [{"x": torch.tensor(x), "y": int(y)} for x, y in zip(X, Y)]
    InOrder(net, arguments, train_dataset=data, callbacks=list(callbacks)).train()


OPTIMIZERS = {
    "adamw": (
        lambda params: torch.optim.AdamW(params, lr=1e-2),
        lambda: ft.optimizers.adamw(1e-2, weight_decay=1e-2),
    ),
    "sgd": (
        lambda params: torch.optim.SGD(params, lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda: ft.optimizers.sgd(0.3, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
}


# Plain steps, a last batch that is short, and windows of which an epoch has a whole number.
@pytest.mark.parametrize(("window", "rows"), [(1, ROWS), (1, ROWS - 5), (2, ROWS)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lightnings_steps_are_ours(name, window, rows):
    theirs, made = OPTIMIZERS[name]
    *run, first = trained_by(by_lightning, optimizer=theirs, clip=0.2, window=window, rows=rows)

    def off(*stages):
        return apart(ours(ft.MultiSteps(ft.chain(*stages), window), first, rows), run)

    assert off(ft.clip_by_norm(0.2), made()) < 2e-6
    assert off(made()) > 1e-4  # that the norm is clipped shows far above that
    if name == "adamw":  # and so does the weight decay that each has by default
        assert off(ft.clip_by_norm(0.2), ft.optimizers.adamw(1e-2)) > 1e-4


UPDATES = EPOCHS * ROWS // (2 * SIZE)
RATES = {
    "cosine": ft.schedules.warmup(ft.schedules.cosine(1e-2, UPDATES - 2), 2),
    "linear": ft.schedules.warmup(ft.schedules.linear(1e-2, 0.0, UPDATES - 2), 2),
}


@pytest.mark.parametrize(("kind", "decay"), [("cosine", 0.0), ("linear", 0.5)])
def test_the_trainers_steps_are_ours(kind, decay):
    options = dict(lr_scheduler_type=kind, weight_decay=decay, max_grad_norm=0.2)
    *run, first = trained_by(by_the_trainer, window=2, learning_rate=1e-2, warmup_steps=2, **options)

    def off(rate, **more):
        tx = ft.chain(ft.clip_by_norm(0.2), ft.optimizers.adamw(rate, weight_decay=decay, **more))
        return apart(ours(ft.MultiSteps(tx, 2), first), run)

    assert off(RATES[kind], mask="weight") < 2e-6
    assert all(off(rate, mask="weight") > 1e-5 for other, rate in RATES.items() if other != kind)
    if decay:  # which leaves biases out
        assert off(RATES[kind]) > 1e-5


def test_a_window_ends_with_the_epoch_there_and_goes_on_here():
    """Eight batches an epoch in windows of three: six updates in two epochs, and here five."""
    transformers = pytest.importorskip("transformers")
    updates = {"Lightning": 0, "Trainer": 0}

    def counting(params):
        def count(*_):
            updates["Lightning"] += 1

        optimizer = torch.optim.SGD(params, lr=0.1)
        optimizer.register_step_post_hook(count)
        return optimizer

    class Counts(transformers.TrainerCallback):
        def on_optimizer_step(self, *_, **__):
            updates["Trainer"] += 1

    trained_by(by_lightning, optimizer=counting, clip=None, window=3)
    *_, first = trained_by(by_the_trainer, window=3, callbacks=[Counts()])
    assert updates == {"Lightning": 6, "Trainer": 6}
    task = ft.Task(loss_fn, ft.MultiSteps(ft.optimizers.sgd(0.1), 3))
    data = {"x": X, "y": Y}
    state, _ = ft.fit(task, ft.init_state(task, first), data, epochs=EPOCHS, batch_size=SIZE, progress=False)
    assert int(state.updates) == 5


def test_lightning_too_averages_what_is_logged_over_examples():
    lightning = pytest.importorskip("lightning")
    values = torch.arange(10.0)

    class Logs(lightning.LightningModule):
        def validation_step(self, batch, index):
            self.log("value", batch[0].mean())

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as directory:
        warnings.simplefilter("ignore")
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(values), 4)
        off = dict(logger=False, enable_progress_bar=False, default_root_dir=directory)
        found = lightning.Trainer(accelerator="cpu", **off).validate(Logs(), loader, verbose=False)
    assert found == [{"value": 4.5}]  # the mean of the batches' means is 5.17
