"""hesstune in a loop on accelerate: the lines marked + are all that is added."""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import hesstune as ht  # +

digits = load_digits()
x, clean = torch.tensor(digits.images / 16).float().flatten(1), torch.tensor(digits.target)
F = ht.NoiseMatrix.symmetric(10, 0.4)  # +
y = torch.from_numpy(F.corrupt(clean.numpy(), seed=0))

torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
ref = ht.Reference.of(model)  # + before training
model, optimizer, loader = accelerator.prepare(
    model,
    torch.optim.Adam(model.parameters(), lr=3e-3),
    DataLoader(TensorDataset(x[:1200], y[:1200]), batch_size=64, shuffle=True),
)
constraint = ht.DistanceConstraint(accelerator.unwrap_model(model), ref, radius=3.0)  # +
loss = ht.ConsistentLoss(F)  # + instead of cross-entropy
for _ in range(20):
    for inputs, targets in loader:
        optimizer.zero_grad()
        accelerator.backward(loss(model(inputs), targets))
        optimizer.step()
        constraint.project_()  # + after every step

accuracy = (model(x[1200:]).argmax(1) == clean[1200:]).float().mean()
print(f"test accuracy on true labels: {accuracy:.3f}")
