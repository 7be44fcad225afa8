"""hesstune in Lightning: the lines marked + are all that is added.

40 % of the images of each digit are labelled as the next digit, at a known rate.
"""

import sys

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import hesstune as ht  # +
from hesstune.integrations import RobustCallback  # +

seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
digits = load_digits()
x, clean = torch.tensor(digits.images / 16).float().flatten(1), torch.tensor(digits.target)
F = ht.NoiseMatrix.pair(10, 0.4)  # + F[i, j] = P(given label = j | true label = i)
y = torch.from_numpy(F.corrupt(clean.numpy(), seed=seed))


class Classifier(pl.LightningModule):
    """A network of one's own."""

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        self.loss = loss

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


for name in ("plain", "robust"):
    torch.manual_seed(seed)
    loss, callbacks = torch.nn.CrossEntropyLoss(), []
    if name == "robust":
        loss = ht.ConsistentLoss(F)  # + instead of cross-entropy
        callbacks = [RobustCallback(4.0, module="model")]  # + the reference is kept in the checkpoint
    module = Classifier(loss)
    trainer = pl.Trainer(
        max_epochs=80,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(x[:1200], y[:1200]), batch_size=240, shuffle=True))
    accuracy = (module.model(x[1200:]).argmax(1) == clean[1200:]).float().mean()
    print(f"{name}: test accuracy on true labels {accuracy:.3f}")
