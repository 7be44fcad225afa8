"""Lightning: the constraint holds, and checkpoints hold the reference."""

from __future__ import annotations

import pytest
import torch

pl = pytest.importorskip("lightning.pytorch")

from hesstune.errors import DivergedError, HesstuneWarning, ModelError  # noqa: E402
from hesstune.integrations.lightning import RobustCallback  # noqa: E402
from hesstune.reference import Reference  # noqa: E402


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

    def training_step(self, batch, index):
        x, y = batch
        return torch.nn.functional.cross_entropy(self.model(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.05)


def fit(folder, callback, epochs, checkpoint=None, module=None):
    generator = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(
        torch.randn(32, 5, generator=generator), torch.randint(3, (32,), generator=generator)
    )
    module = Module() if module is None else module
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=callback if isinstance(callback, list) else [callback],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8), ckpt_path=checkpoint)
    return module, trainer


def test_the_constraint_holds_and_a_resumed_training_keeps_the_reference(tmp_path):
    start = Reference.of(Module().model)
    whole, _ = fit(tmp_path, RobustCallback(0.2, module="model"), 4)
    assert all(d <= 0.2 * (1 + 1e-5) for d in start.distances(whole.model).values())
    assert max(start.distances(whole.model).values()) > 0.19
    _, trainer = fit(tmp_path, RobustCallback(0.2, module="model"), 2)
    path = tmp_path / "half.ckpt"
    trainer.save_checkpoint(path)
    callback = RobustCallback(0.2, module="model")
    resumed, _ = fit(tmp_path, callback, 4, str(path))
    for name in start.names():
        torch.testing.assert_close(callback.reference[name], start[name])
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-7, msg=name)


def test_a_second_training_has_a_reference_of_its_own(tmp_path):
    callback = RobustCallback(0.2, module="model")
    fit(tmp_path, callback, 1)
    moved = Module()
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(1.0)
    start = Reference.of(moved.model)
    trained, trainer = fit(tmp_path, callback, 2, module=moved)
    for name in start.names():
        torch.testing.assert_close(callback.reference[name], start[name])
    assert all(0 < d <= 0.2 for d in start.distances(trained.model).values())
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    fit(tmp_path, callback, 4, str(tmp_path / "second.ckpt"), module=Module())  # a checkpoint has its own
    torch.testing.assert_close(callback.reference["0.weight"], start["0.weight"])


class Breaking(Module):
    steps = 0

    def training_step(self, batch, index):
        self.steps += 1
        loss = super().training_step(batch, index)
        return {"loss": loss * float("nan") if self.steps == 2 else loss}


def test_a_loss_that_is_not_finite_and_a_wrong_module_end_training(tmp_path):
    module = Breaking()
    with pytest.raises(DivergedError, match="became"):
        fit(tmp_path, RobustCallback(0.2, module="model"), 4, module=module)
    assert module.steps == 2
    with pytest.raises(ModelError, match="'network'"):
        fit(tmp_path, RobustCallback(0.2, module="network"), 1)


class Recurrent(Module):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.GRUCell(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def test_matrices_of_no_known_kind_are_named_or_included(tmp_path):
    with pytest.warns(HesstuneWarning, match=r"does not hold 0.weight_ih, 0.weight_hh"):
        fit(tmp_path, RobustCallback(0.2, module="model"), 1, module=Recurrent())
    module = Recurrent()
    start = Reference.of(module.model)
    callback = RobustCallback(0.01, module="model", include=["0.weight_*"])
    fit(tmp_path, callback, 2, module=module)
    assert set(callback.constraint.radii) == {"0.weight_ih", "0.weight_hh", "2.weight"}
    for name, p in module.model.named_parameters():
        moved = float((p.double() - start[name].double()).norm())
        assert (moved <= 0.01) == (name in callback.constraint.radii)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["WeightAveraging", "EMAWeightAveraging", "StochasticWeightAveraging"])
def test_averaging_callbacks_in_any_order_end_inside(tmp_path, kind, first, recwarn):
    made = {
        "WeightAveraging": lambda: pl.callbacks.WeightAveraging(),
        "EMAWeightAveraging": lambda: pl.callbacks.EMAWeightAveraging(decay=0.5),
        "StochasticWeightAveraging": lambda: pl.callbacks.StochasticWeightAveraging(0.05, swa_epoch_start=2),
    }[kind]()
    callback, module = RobustCallback(0.1, module="model"), Module()
    start = Reference.of(module.model)
    callbacks = [made, callback] if first else [callback, made]
    fit(tmp_path, callbacks, 4, module=module)
    assert 0.01 < max(start.distances(module.model).values()) <= 0.1 * (1 + 1e-6)
    assert not any(issubclass(w.category, HesstuneWarning) for w in recwarn)


class Changing(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.model[0].weight.add_(1.0)


def test_a_layer_that_training_leaves_outside_is_named(tmp_path):
    with pytest.warns(HesstuneWarning, match=r"0\.weight"):
        fit(tmp_path, [RobustCallback(0.1, module="model"), Changing()], 1)


class TwoOptimizers(Module):
    """Manual optimisation: several steps a batch."""

    automatic_optimization = False

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            for _ in range(2):
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, index))
                optimizer.step()
                assert self.callback.constraint.outside() == {}

    def configure_optimizers(self):
        return [torch.optim.Adam(layer.parameters(), 0.05) for layer in (self.model[0], self.model[2])]


def test_each_step_of_manual_optimisation_is_projected(tmp_path):
    module = TwoOptimizers()
    start = Reference.of(module.model)
    module.callback = RobustCallback(0.1, module="model")
    fit(tmp_path, module.callback, 2, module=module)
    assert 0.09 < max(start.distances(module.model).values()) <= 0.1 * (1 + 1e-6)
