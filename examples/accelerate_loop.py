"""hesstune in a loop on accelerate: the lines marked + are all that is added.

40 % of the images of each digit are labelled as the next digit, at a known rate.
"""

import sys

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import hesstune as ht  # +

seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
digits = load_digits()
x, clean = torch.tensor(digits.images / 16).float().flatten(1), torch.tensor(digits.target)
F = ht.NoiseMatrix.pair(10, 0.4)  # + F[i, j] = P(given label = j | true label = i)
y = torch.from_numpy(F.corrupt(clean.numpy(), seed=seed))
accelerator = Accelerator(cpu=True)

for name in ("plain", "robust"):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    ref = ht.Reference.of(model)  # + before training
    model, optimizer, loader = accelerator.prepare(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        DataLoader(TensorDataset(x[:1200], y[:1200]), batch_size=240, shuffle=True),
    )
    loss = torch.nn.CrossEntropyLoss()
    if name == "robust":
        loss = ht.ConsistentLoss(F)  # + instead of cross-entropy
        constraint = ht.DistanceConstraint(accelerator.unwrap_model(model), ref, radius=4.0)  # +
    for _ in range(80):
        for inputs, targets in loader:
            optimizer.zero_grad()
            accelerator.backward(loss(model(inputs), targets))
            optimizer.step()
            if name == "robust":
                constraint.project_()  # + after every step
    accuracy = (model(x[1200:]).argmax(1) == clean[1200:]).float().mean()
    print(f"{name}: test accuracy on true labels {accuracy:.3f}")
