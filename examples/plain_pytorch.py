"""hesstune in a plain PyTorch loop: the lines marked + are all that is added.

40 % of the images of each digit are labelled as the next digit, at a known rate.
"""

import sys

import torch
from sklearn.datasets import load_digits

import hesstune as ht  # +

seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
digits = load_digits()
x, clean = torch.tensor(digits.images / 16).float().flatten(1), torch.tensor(digits.target)
F = ht.NoiseMatrix.pair(10, 0.4)  # + F[i, j] = P(given label = j | true label = i)
y = torch.from_numpy(F.corrupt(clean.numpy(), seed=seed))


def train(robust):
    """Train on noisy labels; return the model and its reference."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = torch.nn.CrossEntropyLoss()
    ref = ht.Reference.of(model)  # + before training
    if robust:
        loss = ht.ConsistentLoss(F)  # + instead of cross-entropy
        constraint = ht.DistanceConstraint(model, ref, radius=4.0)  # +
    for _ in range(400):
        rows = torch.randint(1200, (256,))
        optimizer.zero_grad()
        loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
        if robust:
            constraint.project_()  # + after every step
    return model, ref


for name in ("plain", "robust"):
    model, ref = train(robust=name == "robust")
    accuracy = (model(x[1200:]).argmax(1) == clean[1200:]).float().mean()
    print(f"{name}: test accuracy on true labels {accuracy:.3f}")
print(f"largest distance of a layer: {max(ref.distances(model).values()):.2f}")
m = ht.measure(model, ref, [(x[:1200], y[:1200])])  # which layers went far along sharp directions?
print(f"Hessian distance measure: {m.hessian_distance(n=1200):.3f}")
