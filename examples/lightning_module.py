"""hesstune in Lightning: the lines marked + are all that is added."""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import hesstune as ht  # +
from hesstune.integrations import RobustCallback  # +

digits = load_digits()
x, clean = torch.tensor(digits.images / 16).float().flatten(1), torch.tensor(digits.target)
F = ht.NoiseMatrix.symmetric(10, 0.4)  # +
y = torch.from_numpy(F.corrupt(clean.numpy(), seed=0))


class Classifier(pl.LightningModule):
    """A network of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        self.loss = ht.ConsistentLoss(F)  # + instead of cross-entropy

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


torch.manual_seed(0)
module = Classifier()
trainer = pl.Trainer(
    max_epochs=10,
    accelerator="cpu",
    callbacks=[RobustCallback(3.0, module="model")],  # + the reference travels in the checkpoint
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, DataLoader(TensorDataset(x[:1200], y[:1200]), batch_size=64, shuffle=True))
accuracy = (module.model(x[1200:]).argmax(1) == clean[1200:]).float().mean()
print(f"test accuracy on true labels: {accuracy:.3f}")
