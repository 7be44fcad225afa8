"""hesstune in a plain PyTorch loop: the lines marked + are all that is added."""

import torch
from sklearn.datasets import load_digits

import hesstune as ht  # +

digits = load_digits()
x, clean = torch.tensor(digits.images / 16).float().flatten(1), torch.tensor(digits.target)
F = ht.NoiseMatrix.symmetric(10, 0.4)  # + what is believed about the labels
y = torch.from_numpy(F.corrupt(clean.numpy(), seed=0))

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
ref = ht.Reference.of(model)  # + before training
constraint = ht.DistanceConstraint(model, ref, radius={"2.*": 3.0, "*": 3.0})  # +
loss = ht.ConsistentLoss(F)  # + instead of cross-entropy
for _ in range(400):
    rows = torch.randint(1200, (64,))
    optimizer.zero_grad()
    loss(model(x[rows]), y[rows]).backward()
    optimizer.step()
    constraint.project_()  # + after every step

accuracy = (model(x[1200:]).argmax(1) == clean[1200:]).float().mean()
print(f"test accuracy on true labels: {accuracy:.3f}; distances: {ref.distances(model)}")
m = ht.measure(model, ref, [(x[:1200], y[:1200])])  # which layers went far along sharp directions?
print(f"Hessian distance measure: {m.hessian_distance(n=1200):.3f}")
