"""Find the classifier head, give a layer other outputs, and choose which parameters are trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from hesstune.checks import parse_integer
from hesstune.errors import ConfigError, ModelError, listed, unknown_name
from hesstune.forward import Inputs, batch_size, in_mode, logits_of
from hesstune.reference import in_modules, layer_names
from hesstune.storage.files import one_line

DEFAULT_SIZE = 224
TEXTS = ("a short text", "another text of a few words")


def probe(model: nn.Module, tokenizer: Any, image_size: int | None) -> Inputs:
    """Return inputs for two examples: tokenised texts, or random images, (2, 3, S, S), in the weights' type.

    Without a given S it is the size in timm's or transformers' configuration, or 224.
    """
    if tokenizer is not None:
        rows = [dict(tokenizer(text, truncation=True, max_length=16)) for text in TEXTS]
        return dict(tokenizer.pad(rows, return_tensors="pt"))
    timm = getattr(model, "pretrained_cfg", None)
    size: Any = image_size or getattr(getattr(model, "config", None), "image_size", None)
    if not image_size and isinstance(timm, dict) and timm.get("input_size"):
        size = timm["input_size"][-2:]
    if not (isinstance(size, list | tuple) and len(size) == 2):
        size = [size if isinstance(size, int) and size > 0 else DEFAULT_SIZE] * 2
    images = torch.rand(2, 3, *map(int, size), generator=torch.Generator().manual_seed(0))
    like = next((p for p in model.parameters() if p.is_floating_point()), images)
    return (images - 0.5).to(like)


NAME_IT = "name the classifier by --head (in Python head=)"


def output_size(module: nn.Module) -> int | None:
    """Return the number of outputs of a layer, or None if the module is no layer with a weight of its own.

    Example:
        >>> output_size(nn.Linear(3, 5)), output_size(nn.Conv2d(3, 7, 1)), output_size(nn.ReLU())
        (5, 7, None)
    """
    for name in ("out_features", "out_channels", "nf"):  # nf: transformers' Conv1D
        size = getattr(module, name, None)
        if isinstance(size, int) and isinstance(getattr(module, "weight", None), torch.Tensor):
            return size
    return None


def find_heads(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Return the names of the layers that produce the logits: the first layers back from them in the graph.

    They have as many outputs as there are logits. Networks that average classifiers (DeiT, LeViT) have
    several.

    Raises:
        ModelError: If no unambiguous layers produce the logits, or other ones in training mode.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.Softplus())
        >>> find_heads(net, torch.rand(2, 4))
        ('2',)
    """
    k, heads, ends = _producers(model, inputs, training=False)
    if not heads:
        wide = [name for name, module in model.named_modules() if output_size(module) == k]
        found = f"they come from {listed(ends, 4)}" if ends else "no layer was found before them"
        raise ModelError(
            f"the model has no layer with {k} outputs that produces its {k} logits ({found}); "
            + (f"if one of {listed(wide, 4)} is the classifier, {NAME_IT}" if wide else "use another model")
        )
    try:
        _, in_training, _ = _producers(model, inputs, training=True)
    except ModelError:  # in training mode some networks need more than their inputs
        in_training = heads
    if set(in_training) != set(heads):
        raise ModelError(
            f"the model computes its logits from {listed(heads, 4)} in evaluation mode, but from "
            f"{listed(in_training, 4) or 'no layer with as many outputs'} in training mode; give a model "
            "with one classifier for both modes, such as py:module:factory (timm: distilled_training=False)"
        )
    check_heads(model, heads, k)
    return heads


def check_heads(model: nn.Module, heads: Sequence[str], k: int) -> None:
    """Raise ModelError unless the named modules are layers with k outputs and weights of their own."""
    modules = dict(model.named_modules())
    for name in heads:
        if name not in modules:
            wide = [other for other, module in modules.items() if output_size(module) == k]
            raise unknown_name("module for the classifier", name, wide, ModelError)
        head = modules[name]
        if output_size(head) != k:
            raise ModelError(
                f"the module '{name}' named as the classifier is {_described(head)}, not a layer with {k} "
                "outputs"
            )
        own = dict(head.named_parameters(recurse=False))
        ids = {id(p) for p in own.values()}
        others = {
            other
            for other, module in model.named_modules(remove_duplicate=False)
            if module is not head and any(id(p) in ids for p in module._parameters.values())
        }
        if others:
            raise ModelError(
                f"the classifier '{name}' shares a weight with {listed(sorted(others), 4)}: setting it "
                "to zero and training it would change both; give a model with separate weights"
            )
        if "weight" not in own:
            raise ModelError(
                f"the weight of the classifier '{name}' is no plain parameter (it may be parametrized); give "
                "a model with a plain one"
            )


def _described(module: nn.Module) -> str:
    size = output_size(module)
    return f"a {type(module).__name__}" + ("" if size is None else f" with {size} outputs")


def check_learnable(model: nn.Module, heads: Sequence[str], inputs: Inputs) -> None:
    """Raise ModelError if the logits of some inputs have no gradient in a head: it would never learn."""
    own = [[p for p in model.get_submodule(name).parameters() if p.is_floating_point()] for name in heads]
    with _traced_mode(model, training=False):
        logits = logits_of(model, inputs)
        weights = torch.linspace(-1, 1, logits.numel(), device=logits.device).reshape(logits.shape)
        flat = [p for parameters in own for p in parameters]
        seeds = (logits.float() * weights).sum()
        found = iter(torch.autograd.grad(seeds, flat, allow_unused=True) if logits.requires_grad else [])
        gradients = [[next(found, None) for _ in parameters] for parameters in own]
    for name, of_head in zip(heads, gradients, strict=True):
        if all(gradient is None for gradient in of_head):
            raise ModelError(f"the logits do not depend on the module '{name}'; {NAME_IT}")
        if not any(bool(gradient.any()) for gradient in of_head if gradient is not None):
            raise ModelError(
                f"the classifier '{name}' cannot learn from its start: the logits have no gradient in "
                "its weights; if it was set to zero, start it as it is by --head-init keep"
            )


def new_layer(old: nn.Module, k: int) -> nn.Module:
    """Return a freshly initialised layer like another one, Linear or convolution, with k outputs."""
    bias = getattr(old, "bias", None) is not None
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, k, bias=bias)
    if isinstance(old, nn.Conv1d | nn.Conv2d | nn.Conv3d) and old.groups == 1:
        kind: Any = type(old)
        shape = (old.kernel_size, old.stride, old.padding, old.dilation)
        made: nn.Module = kind(old.in_channels, k, *shape, bias=bias)
        return made
    raise ModelError(f"the classifier is {_described(old)}, which cannot be given {k} outputs")


@contextmanager
def _traced_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Let every parameter take a gradient in one mode; restore flags, buffers and random state after it."""
    flags = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()] if training else []
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(True)
            with in_mode(model, training):
                yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _producers(
    model: nn.Module, inputs: Inputs, training: bool
) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Return the number of logits K, the layers with K outputs that produce them, and the other ones."""
    names: dict[Any, str] = {}  # node of the graph -> layer that made this output

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.grad_fn is not None:
                names.setdefault(output.grad_fn, name)  # of a layer within a layer the inner one

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if output_size(module) is not None
    ]
    try:
        with _traced_mode(model, training):
            logits = logits_of(model, inputs)
    except ModelError:
        raise
    except Exception as error:  # networks raise anything on inputs that they do not take
        raise fails_on(inputs, error) from error
    finally:
        for handle in handles:
            handle.remove()
    if logits.shape[0] != batch_size(inputs):
        raise ModelError(f"the model outputs {tuple(logits.shape)} for {batch_size(inputs)} examples")
    k = logits.shape[1]
    reached = _first_reached([logits.grad_fn], names)
    order = [name for name, _ in model.named_modules()]
    heads = tuple(n for n in order if n in reached and output_size(model.get_submodule(n)) == k)
    _refuse_nested(names, heads)
    return k, heads, tuple(name for name in order if name in reached and name not in heads)


def fails_on(inputs: Inputs, error: Exception) -> ModelError:
    """Return the error that says why a network fails on a batch."""
    shape = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else sorted(inputs)
    return ModelError(f"the model fails on inputs of shape {shape}: {one_line(error)}")


def _first_reached(starts: Iterable[Any], names: dict[Any, str]) -> set[str]:
    """Return the first layers on the paths of the graph that begin at some nodes."""
    found, seen, todo = set[str](), set[Any](), list(starts)
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in names:
            found.add(names[node])
        else:
            todo.extend(parent for parent, _ in node.next_functions)
    return found


def _refuse_nested(names: dict[Any, str], heads: tuple[str, ...]) -> None:
    """Raise ModelError if the output of one head is an input of another."""
    for node, name in names.items():
        if name not in heads:
            continue
        others = {n: other for n, other in names.items() if other in heads and other != name}
        if above := _first_reached((parent for parent, _ in node.next_functions), others):
            raise ModelError(
                f"the logits come from {listed(heads, 4)}, and '{min(above)}' also feeds '{name}', so "
                f"that none is the classifier by itself; {NAME_IT}"
            )


def freeze(model: nn.Module, train: str, heads: str | Sequence[str]) -> list[str]:
    """Freeze every parameter that `train` does not name; return the names of those trained.

    Raises:
        ConfigError: If `train` names no parameter.
    """
    chosen = _chosen(model, train, heads)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name, _ in model.named_parameters() if name in chosen]


def trains_head_only(model: nn.Module, train: str, heads: str | Sequence[str]) -> bool:
    """Return whether `train` names exactly the parameters of the head, however it is written.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> [trains_head_only(model, train, "2") for train in ("last:1", "2.*", "from:2", "last:2", "2.bias")]
        [True, True, True, False, False]
    """
    return _chosen(model, train, heads) == _chosen(model, "head", heads)


def _chosen(model: nn.Module, train: str, heads: str | Sequence[str]) -> set[str]:
    """Return the names of the parameters that `train` names.

    It is `all`, `head`, `last:N` (the head, and of the other layers the N - 1 defined last with every
    parameter defined after the first of them), `from:NAME` (a module and every parameter defined after its
    first), or an fnmatch pattern on parameter names.
    """
    names = [name for name, _ in model.named_parameters()]
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    of_head = {name for name in names if in_modules(name, heads)}
    if train == "all":
        chosen = set(names)
    elif train == "head":
        chosen = of_head
    elif train.startswith("last:"):
        count = parse_integer(train.removeprefix("last:"))
        body = [name for name in layer_names(model) if name not in of_head]
        most = len(body) + bool(of_head)
        if count is None or not 1 <= count <= most:
            raise ConfigError(f"train '{train}' must be last:N with N from 1 to {most}")
        others = count - bool(of_head)
        chosen = of_head | set(names[names.index(body[-others]) :] if others else ())
    elif train.startswith("from:"):
        module = train.removeprefix("from:")
        at = next((i for i, name in enumerate(names) if name.startswith(f"{module}.")), None)
        if at is None:
            holders = [n for n, m in model.named_modules() if n and next(m.parameters(), None) is not None]
            raise unknown_name("module to train from", module, holders)
        chosen = set(names[at:])
    else:
        chosen = {name for name in names if fnmatchcase(name, train)}
        if not chosen:
            raise unknown_name(
                "pattern of parameters to train", train, ["all", "head", "last:N", "from:MODULE", *names]
            )
    return chosen
