"""What every network of the zoo goes through, each check against something else than hesstune itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo_networks import CLASSES, VOCABULARY

import hesstune as ht
from hesstune.forward import logits_of

EXAMPLES, TOKENS = 3, 12
RADIUS = 0.4
LARGEST_TWIN = 128
MOST_LAYERS = 10


def inputs_of(network, examples=EXAMPLES):
    """Return a batch: images, or sentences of which the second is shorter; each ends with the token 3."""
    generator = torch.Generator().manual_seed(1)
    if network.reads == "images":
        size = network.image_size
        return torch.randn((examples, 3, size, size), generator=generator)
    ids = torch.randint(5, VOCABULARY, (examples, TOKENS), generator=generator)
    mask = torch.ones(examples, TOKENS, dtype=torch.long)
    mask[1, TOKENS - 3 :] = 0
    ids[:, 0] = 2
    ids[torch.arange(examples), mask.sum(1) - 1] = 3
    return {"input_ids": ids * mask, "attention_mask": mask}


def random_network(network):
    """Build the network with random weights of ordinary size; initial ones are often 0 or very small."""
    torch.manual_seed(0)
    model = network.build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan = max(1, parameter[0].numel())
                parameter.normal_(0, min(1.0, 1.3 / fan**0.5))
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return zero_padding(model)


@torch.no_grad()
def zero_padding(model):
    """Set the embeddings of padding to zero, which training leaves there."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0.0
    return model


def moved_network(model, ref, inputs, targets):
    """Move all weights and take one training step with the paper's loss and constraint; return the radii."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(0.1 * parameter.std(correction=0) * torch.randn_like(parameter))
    zero_padding(model)
    loss = ht.ConsistentLoss(ht.NoiseMatrix.symmetric(CLASSES, 0.2))
    constraint = ht.DistanceConstraint(model, ref, radius=RADIUS, include=())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    loss(logits_of(model, inputs), targets).backward()
    optimizer.step()
    optimizer.zero_grad()
    constraint.project_()
    return constraint.radii


def state_of(model):
    """Return all that a function may not change."""
    tensors = {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    flags = {n: m.training for n, m in model.named_modules()}
    needs = {n: (p.requires_grad, p.grad is None) for n, p in model.named_parameters()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return tensors, flags, needs, hooks, torch.get_rng_state()


def same_state(before, after):
    """Tell whether two states are equal, to the bit."""
    (tensors, *others, rng), (now, *others_now, rng_now) = before, after
    return (
        tensors.keys() == now.keys()
        and all(torch.equal(t, now[n]) for n, t in tensors.items())
        and others == others_now
        and torch.equal(rng, rng_now)
    )


def in_double(inputs):
    """Return the batch, images in float64."""
    return inputs.double() if isinstance(inputs, torch.Tensor) else inputs


def fresh_logits(network, model, inputs):
    """Return the logits of a network built anew, with the model's weights, in eval mode."""
    other = network.build()
    other.load_state_dict(model.state_dict())
    other.eval()
    with torch.no_grad():
        return logits_of(other, inputs)


def twin_form(model, name, v, inputs, row, label):
    """Return vᵀ H⁺ v of one example and layer from the dense Hessian, and |v|² times H's norm.

    The example stays in its batch: torch's gradient of batch norm is wrong for some batches of one.
    """
    weight = dict(model.named_parameters())[name].detach().clone().requires_grad_()
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})
    with sdpa_kernel(SDPBackend.MATH):
        output = functional_call(model, {name: weight}, args, kwargs)
        logits = logits_of(Returning(output), {})[row]
        loss = torch.logsumexp(logits, 0) - logits[label]
        (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
        rows = [
            torch.autograd.grad(s, weight, retain_graph=True, materialize_grads=True)[0].flatten()
            for s in slope.flatten()
        ]
    hessian = torch.stack(rows).double()
    values, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
    parts = vectors.T @ v.double().flatten()
    return float((values.clamp(min=0) * parts**2).sum()), float(values.abs().max() * parts.square().sum())


def measured_layers(names):
    """Choose the layers that are measured: all, or so many from the first to the last."""
    if len(names) <= MOST_LAYERS:
        return names
    return [names[round(i * (len(names) - 1) / (MOST_LAYERS - 1))] for i in range(MOST_LAYERS)]


def twin_layers(model, names):
    """Choose an early and a late layer whose Hessian is small enough to be written out."""
    weights = dict(model.named_parameters())
    small = [name for name in names if weights[name].numel() <= LARGEST_TWIN]
    return list(dict.fromkeys([small[0], small[-2] if len(small) > 2 else small[-1]])) if small else []


def twin_of(model, is_double):
    """Return a copy in eval mode, in float64 where it can, of operations that have second derivatives."""
    twin = copy.deepcopy(model)
    twin = (twin.double() if is_double else twin).eval()
    if hasattr(twin, "set_experts_implementation"):  # the grouped product of experts has no float64
        twin.set_experts_implementation("eager")
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.Hardsigmoid):
            twin.set_submodule(name, Hardsigmoid())
    return twin


class Hardsigmoid(nn.Module):
    """The same function, of which torch has a second derivative."""

    def forward(self, x):
        """Return min(max(x + 3, 0), 6) / 6."""
        return (x + 3).clamp(0, 6) / 6


class Returning(nn.Module):
    """A module that returns what it was given, so that logits are found in any network's output."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self):
        """Return the output."""
        return self.output
