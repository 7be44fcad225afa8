"""From a model specification to a network with a head for K classes, and from the network to files."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hesstune.checks import expanded, one_of, parse_integer, readable_file
from hesstune.errors import ModelError, RunError, listed, unknown_name
from hesstune.forward import (
    Inputs,
    batch_size,
    clear_caches,
    evaluating,
    is_compiled,
    logits_of,
    uncompiled,
)
from hesstune.models.heads import check_heads, fails_on, find_heads, output_size, probe
from hesstune.models.networks import (
    IMAGENET,
    LINEAR,
    UNCHANGED,
    LinearOnFeatures,
    load_minilm,
    load_text_model,
    load_vision_model,
    pad_by_side,
    padded_tokenizer,
)
from hesstune.models.preparation import ImageRule
from hesstune.reference import in_modules
from hesstune.resizing import FILTERS, Resize
from hesstune.storage.files import one_line, write_json
from hesstune.storage.seen_examples import SeenExamples
from hesstune.storage.tensors import add_metadata, save_tensors
from hesstune.user_code import import_user_module

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def main_dtype(tensors: Iterable[torch.Tensor]) -> str:
    """Return the floating-point type of most numbers, such as `float16`; "" if there are none.

    Example:
        >>> main_dtype([torch.zeros(2), torch.zeros(3, dtype=torch.float16)])
        'float16'
    """
    counts: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.is_floating_point():
            counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return counts.most_common(1)[0][0] if counts else ""


def checkpoint_dtype(name: str) -> str:
    """Return the type in the header of a transformers checkpoint (its first shard); "" if unknown."""
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    quiet = dict.fromkeys(("missing_entries", "connection_errors", "gated_repo"), False)
    how: dict[str, Any] = {f"_raise_exceptions_for_{name}": value for name, value in quiet.items()}
    counts: Counter[str] = Counter()
    try:
        path = cached_file(name, "model.safetensors", **how)
        if path is None and (index := cached_file(name, "model.safetensors.index.json", **how)) is not None:
            shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
            path = cached_file(name, min(shards), **how)
        if path is None:
            return ""
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no mapping)
                part = tensors.get_slice(key)
                counts[str(part.get_dtype())] += math.prod(part.get_shape())
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return next((_SAFETENSORS[kind] for kind, _ in counts.most_common() if kind in _SAFETENSORS), "")


def cast(model: nn.Module, dtype: str) -> nn.Module:
    """Bring a network's floating-point weights and buffers to a type, in place."""
    wanted = DTYPES[dtype]
    if all(t.dtype == wanted for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()):
        return model
    try:
        return model.to(wanted)
    except Exception as error:  # libraries of quantised weights raise their own kinds
        raise ModelError(
            f"the model's weights cannot be brought to {dtype} ({one_line(error)}); quantised weights cannot "
            "be fine-tuned: give an unquantised checkpoint"
        ) from error


def precision_notes(stored: str, dtype: str, source: str = "the model's weights") -> list[str]:
    """Return remarks on the types that weights are stored and used in."""
    notes = []
    if stored and stored != dtype:
        notes.append(f"{source} are stored in {stored} and used in {dtype}")
    if dtype != "float32":
        notes.append(
            f"the weights are trained in {dtype} as --dtype asks: steps below 1/256 of a weight round to "
            "nothing; --mixed-precision bf16 keeps float32 weights"
        )
    return notes


# Names of the state dict in checkpoints that hold more, the most probable first.
_HELD_AS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
# Parts that wrappers add to names.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict from safetensors, or from a torch file with weights_only=True.

    Of a checkpoint that holds more (`state_dict`, `model`, …) that entry is taken.
    """
    path = readable_file(path, "the weights file")
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds on damaged or unsafe files
        raise ModelError(f"{path} cannot be read as weights: {one_line(error)}") from error
    if not isinstance(state, dict):
        raise ModelError(f"{path} is not a state dict of tensors")
    if _is_state_dict(state):
        return state
    for name in _HELD_AS:
        if _is_state_dict(state.get(name)):
            return dict(state[name])
    raise ModelError(
        f"{path} is not a state dict of tensors, and holds none as {listed(_HELD_AS)}; it holds "
        f"{listed(state)}"
    )


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())


def fitting_names(
    state: Mapping[str, torch.Tensor], own: Iterable[str]
) -> tuple[dict[str, torch.Tensor], str | None]:
    """Return weights by the model's names, without what wrappers add to names, and what was removed.

    A prefix (`module.`, `model.` or any other) is removed if no name is the model's with it, and some are
    without it. A name without the prefix stays, and is reported as unexpected.

    Example:
        >>> found, prefix = fitting_names({"module.weight": torch.zeros(1)}, ["weight"])
        >>> list(found), prefix
        (['weight'], 'module.')
    """
    names = set(own)
    if names & set(state):
        return dict(state), None
    inside = [wrapper for wrapper in sorted(_WRAPPERS) if any(wrapper in name for name in state)]
    plain = list(state)
    for wrapper in inside:
        plain = [name.replace(wrapper, "") for name in plain]
    prefix = ""
    if not names & set(plain):
        counts: Counter[str] = Counter()
        for parts in (name.split(".") for name in plain):
            starts = (at for at in range(1, len(parts)) if ".".join(parts[at:]) in names)
            counts.update(".".join(parts[:at]) + "." for at in starts)
        if not counts:
            return dict(state), None
        prefix = counts.most_common(1)[0][0]
    found = {name.removeprefix(prefix): tensor for name, tensor in zip(plain, state.values(), strict=True)}
    if len(found) < len(state):
        return dict(state), None  # two names would become one
    removed = inside + ([prefix] if prefix else [])
    return found, listed(removed) if removed else None


KINDS = ("efficientnet_lite0", "minilm", "hf", "timm", "torchvision", "py", LINEAR)
BUILT_IN = ("efficientnet_lite0", "minilm")
# The largest D of linear:D.
MOST_FEATURES = 1 << 20
# What stands for a module given in Python.
MODULE = "module"


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to be fine-tuned.

    Attributes:
        model: The module; it maps normalised images, (N, 3, S, S), or tokenised texts to logits, (N, K).
        head: The name of the classifier, the layer whose output is the logits, such as `_fc`.
        mean: Channel means that are subtracted from images in [0, 1].
        std: Channel deviations that images are divided by.
        tokenizer: What turns texts into inputs; None for a model of images.
        notes: What was changed to make it fit.
        other_heads: The other classifiers of a network that makes its logits of several, such as the mean.
        stored_dtype: The floating-point type that its weights are stored in.
        seen: The examples that its weights have seen, as far as their files recorded them.
        bgr: Whether the network takes the blue channel first; mean and std are in its order.
    """

    model: nn.Module
    head: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokenizer: Any = None
    notes: tuple[str, ...] = ()
    other_heads: tuple[str, ...] = ()
    stored_dtype: str = ""
    seen: SeenExamples = field(default_factory=SeenExamples)
    bgr: bool = False

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of all classifiers."""
        return (self.head, *self.other_heads)

    @property
    def width(self) -> int | None:
        """D of a linear head on feature vectors of D numbers; None for a network of images or texts."""
        return self.model.head.in_features if isinstance(self.model, LinearOnFeatures) else None

    @property
    def head_layers(self) -> list[str]:
        """The layer names of the heads' weights."""
        return [f"{head}.weight" if head else "weight" for head in self.heads]


ModelObject = nn.Module | tuple[nn.Module, Any] | LoadedModel
"""A model given in Python: a module, a module with its tokenizer, or one that `load_model` made."""


def spec_parts(spec: str) -> tuple[str, str]:
    """Split a model specification into kind and argument; raise ModelError if it is none."""
    kind, _, argument = spec.partition(":")
    if spec == MODULE:
        raise ModelError(
            "the model 'module' was a torch.nn.Module given in Python, which no file holds: give it "
            "again, finetune(model=…) or Run.load(path, model=…)"
        )
    if kind not in KINDS:
        raise unknown_name("model", kind, KINDS, ModelError)
    if (kind in BUILT_IN) == bool(argument):
        forms = {"py": "module:factory", LINEAR: "D, with D the length of the feature vectors"}
        form = kind if argument else f"{kind}:{forms.get(kind, 'NAME')}"
        raise ModelError(f"model '{spec}' must be written {form}")
    return kind, str(expanded(argument)) if argument.startswith("~") else argument


def load_model(  # noqa: PLR0913
    spec: str | ModelObject,
    k: int,
    *,
    weights: str | Path | None = None,
    head_init: str = "zero",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    text: bool = False,
    pretrained: bool = True,
    head: str | Sequence[str] = (),
    dtype: str = "float32",
    image_size: int | None = None,
) -> LoadedModel:
    """Load a pretrained network with a head for k classes.

    Args:
        spec: `efficientnet_lite0`, `minilm`, `hf:NAME_OR_PATH`, `timm:NAME`, `torchvision:NAME` or
            `py:module:factory` (called as factory(num_classes=k), or factory(k); for texts it returns
            the module and a transformers tokenizer), or `linear:D`, a linear head on vectors of D features.
            Or a module (for texts a pair of module and tokenizer), or a LoadedModel: a copy of it is loaded,
            and it is left as it was.
        k: Number of classes.
        weights: A safetensors file or a state dict saved by torch, loaded on top; a head of another
            size in it is left out. timm and torchvision then need no weights of their own.
        head_init: `zero` sets the head to zero, so that its distance is its norm; `keep` does not.
        mean: Channel means for images in [0, 1], instead of the model's own.
        std: Channel deviations, likewise.
        text: Whether the examples are texts; images otherwise.
        pretrained: False if the caller fills in all weights: timm and torchvision then fetch none.
        head: The name of the classifier's module, or names; none: found from the graph of a forward pass.
        dtype: The floating-point type of the weights: `float32` or `bfloat16`.
        image_size: Side in pixels of the images of that forward pass; None: the model's own, or 224.

    Raises:
        ModelError: If the model cannot be loaded, does not output k logits, has no classifier that can be
            found, or reads the other kind.
        MissingExtraError: If the package that provides it is not installed.
    """
    one_of("dtype", dtype, tuple(DTYPES))
    heads = (head,) if isinstance(head, str) else tuple(head)
    stored = ""
    if isinstance(spec, str):
        kind, argument = spec_parts(spec)
        pretrained = pretrained and weights is None
        model, rule, tokenizer = _load_named(kind, argument, k, text, pretrained, heads, image_size)
        if kind == "hf":
            stored = checkpoint_dtype(argument)
    else:
        model, rule, tokenizer = _copied(spec, text)
    compiled = is_compiled(model)
    model = uncompiled(model)
    seen = spec.seen if isinstance(spec, LoadedModel) else SeenExamples.noted_on(model)
    stored = stored or main_dtype(model.parameters())
    padding = [] if tokenizer is None else pad_by_side(model, tokenizer)
    cast(model, dtype)
    heads = heads or (model.heads if isinstance(model, LinearOnFeatures) else ())
    if heads:
        check_heads(model, heads, k)
    else:
        heads = _found_heads(model, probe(model, tokenizer, image_size), k)
    notes = precision_notes(stored, dtype)
    if weights is not None:
        stored, notes = _put_weights(model, weights, heads, dtype)
        seen |= SeenExamples.of_file(weights) or SeenExamples(unrecorded=(str(weights),))
    notes += padding
    if compiled:
        notes.append("torch.compile was undone: the original network is trained")
    if head_init == "zero":
        for parameter in (p for name in heads for p in model.get_submodule(name).parameters()):
            nn.init.zeros_(parameter)
    if len(heads) > 1:
        notes.append(f"the logits come from {len(heads)} classifiers, which are the head: {listed(heads, 4)}")
    if not (mean and std):
        notes += _notes_of(rule)
    mean, std = _three_channels(mean or rule.mean, "mean"), _three_channels(std or rule.std, "std")
    made = LoadedModel(model, heads[0], mean, std, tokenizer, tuple(notes), heads[1:], stored, seen)
    return replace(made, bgr=rule.bgr)


def _found_heads(model: nn.Module, inputs: Inputs, k: int) -> tuple[str, ...]:
    """Return the classifiers that a forward pass shows; raise ModelError unless they have k outputs."""
    heads = find_heads(model, inputs)
    if (own := output_size(model.get_submodule(heads[0]))) != k:
        raise ModelError(f"the model outputs {own} logits; {k} classes need {k}")
    return heads


def _notes_of(rule: ImageRule) -> tuple[str, ...]:
    """Return the notes of a rule; raise ModelError, with the reason, if there is no mean and std."""
    if not rule.mean:
        raise ModelError(rule.notes[0])
    return rule.notes


def _put_weights(
    model: nn.Module, path: str | Path, heads: tuple[str, ...], dtype: str
) -> tuple[str, list[str]]:
    """Copy the weights of a file into a model; return their floating-point type, and notes."""
    own = (n for n, _ in [*model.named_parameters(), *model.named_buffers()])
    state, removed = fitting_names(read_weights(path), own)
    set_parameters(model, state, str(path), heads)
    stored = main_dtype(state.values())
    notes = [f"'{removed}' was taken off the names of the weights in {path}"] if removed else []
    return stored, notes + precision_notes(stored, dtype, f"the weights in {path}")


def _load_named(
    kind: str,
    argument: str,
    k: int,
    text: bool,
    pretrained: bool,
    heads: tuple[str, ...],
    image_size: int | None,
) -> tuple[nn.Module, ImageRule, Any]:
    """Return a network by its name, the rule of its images, and its tokenizer."""
    if kind == "py":
        made = _made_by_user(argument, k)
        if text and _is_pair(made):
            return made[0], UNCHANGED, padded_tokenizer(*made)
        if text or not isinstance(made, nn.Module):
            needed = "(module, tokenizer) for data that holds texts" if text else "a torch.nn.Module"
            raise ModelError(f"py:{argument} returned {type(made).__name__}; it must return {needed}")
        return made, IMAGENET, None
    if kind == LINEAR:
        return LinearOnFeatures(_feature_width(argument), k), UNCHANGED, None
    if not text:
        return (*load_vision_model(kind, argument, k, pretrained, heads, image_size), None)
    if kind not in ("minilm", "hf"):
        raise ModelError(f"model '{kind}' reads images, but the data holds texts; use minilm or hf:NAME")
    model, tokenizer = load_minilm(k) if kind == "minilm" else load_text_model(argument, k)
    return model, UNCHANGED, tokenizer


def _feature_width(argument: str) -> int:
    width = parse_integer(argument)
    if width is None or not 0 < width <= MOST_FEATURES:
        raise ModelError(f"model 'linear:{argument}' must be written linear:D, D from 1 to {MOST_FEATURES}")
    return width


def _is_pair(given: object) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], nn.Module)


def _copied(given: ModelObject, text: bool) -> tuple[nn.Module, ImageRule, Any]:
    """Copy a model given in Python, so that nothing done to the copy changes it."""
    tokenizer, rule = None, IMAGENET
    if isinstance(given, LoadedModel):
        module, tokenizer = given.model, given.tokenizer
        rule = ImageRule(given.mean, given.std, given.bgr)
    elif isinstance(given, nn.Module):
        module = given
    elif _is_pair(given):
        module, tokenizer = given
    else:
        raise ModelError(
            f"a model is a name, a torch.nn.Module or (module, tokenizer); got {type(given).__name__}"
        )
    if text and tokenizer is None:
        raise ModelError("the data holds texts: give the module with its tokenizer, (module, tokenizer)")
    if tokenizer is not None and not text:
        raise ModelError("the model came with a tokenizer, but the data holds images; give the module alone")
    clear_caches(module)  # a tensor that is kept with its graph cannot be copied
    try:
        module, tokenizer = copy.deepcopy((module, tokenizer))
    except Exception as error:  # modules may hold anything
        raise ModelError(f"the module cannot be copied ({one_line(error)}); use py:module:factory") from error
    if tokenizer is not None:
        return module, UNCHANGED, padded_tokenizer(module, tokenizer)
    return module, rule, None


def _three_channels(values: tuple[float, ...], name: str) -> tuple[float, float, float]:
    if len(values) == 1:
        values = values * 3
    if len(values) != 3 or (name == "std" and min(values) <= 0):
        raise ModelError(f"{name} must be one or three numbers{' above 0' if name == 'std' else ''}")
    return values[0], values[1], values[2]


def _made_by_user(argument: str, k: int) -> Any:
    """Return what a user's factory returns: a module, or for texts a module and a tokenizer."""
    module_name, _, factory_name = argument.partition(":")
    if not factory_name:
        raise ModelError(f"model 'py:{argument}' must be written py:module:factory")
    try:
        module = import_user_module(module_name)
    except Exception as error:  # a module that is run may fail in any way
        raise ModelError(
            f"cannot import the module '{module_name}': {type(error).__name__}: {error}"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise unknown_name(f"factory in {module_name}", factory_name, names, ModelError)
    try:
        takes = inspect.signature(factory).parameters
        keyword = "num_classes" in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values())
    except (TypeError, ValueError):
        keyword = False
    return factory(num_classes=k) if keyword else factory(k)


def check_output(model: nn.Module, inputs: Inputs, k: int) -> None:
    """Raise ModelError unless the model maps the inputs to finite (N, k) logits."""
    size = batch_size(inputs)
    try:
        with torch.no_grad(), evaluating(model), torch.random.fork_rng(devices=[]):
            logits = logits_of(model, inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, ModelError):
            raise
        raise fails_on(inputs, error) from error
    if logits.shape != (size, k):
        raise ModelError(
            f"the model outputs {tuple(logits.shape)} for {size} examples; {k} classes need ({size}, {k})"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the pretrained model's logits are not finite; are its weights damaged?")


@torch.no_grad()
def set_parameters(
    model: nn.Module, state: dict[str, torch.Tensor], source: str, partial: Sequence[str] = ()
) -> None:
    """Copy parameters and buffers by name, in place; raise ModelError if they do not fit the model.

    Tensors of the modules named in `partial` may be missing or of another size.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    aliases = set(model.state_dict()) - set(own)  # other names of tied weights
    spared = {n for n in own if in_modules(n, partial)}
    required = set(own) & set(model.state_dict())
    missing = [n for n in required if n not in state and n not in spared]
    extra = [n for n in state if n not in own and n not in aliases]
    if missing or extra:
        problems = [f"missing: {listed(sorted(missing), 4)}"] if missing else []
        problems += [f"unexpected: {listed(sorted(extra), 4)}"] if extra else []
        raise ModelError(f"the weights in {source} do not fit the model; {'; '.join(problems)}")
    for name, tensor in state.items():
        if name not in own or (name in spared and own[name].shape != tensor.shape):
            continue
        if own[name].shape != tensor.shape:
            raise ModelError(
                f"'{name}' has shape {tuple(tensor.shape)} in {source}, "
                f"but {tuple(own[name].shape)} in the model"
            )
        own[name].copy_(tensor)


def export_model(loaded: LoadedModel, folder: Path, facts: dict[str, Any]) -> str:
    """Write weights and configuration into an existing folder; return one line of Python that loads them.

    A transformers model is written by `save_pretrained`, with its tokenizer or its image preprocessing. If
    its class is not part of transformers (`minilm`), a copy of the class is written too, which transformers
    loads with `trust_remote_code=True`. Any other network is written as `model.safetensors` and
    `config.json`. Weights and configuration keep the record of the examples that the weights have seen.
    `facts` are the model's specification, its classes, `image_size` and `resize`.
    """
    model: Any = loaded.model
    if not hasattr(model, "save_pretrained"):
        return _save_plain(loaded, folder, facts)
    classes = facts["classes"]
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: i for i, name in enumerate(classes)}
    loaded.seen.note_on(model)
    _save_pretrained(model, folder)
    for path in folder.glob("*.safetensors"):
        add_metadata(path, loaded.seen.metadata())
    kind = "SequenceClassification" if loaded.tokenizer is not None else "ImageClassification"
    if loaded.tokenizer is not None:
        _save_pretrained(loaded.tokenizer, folder)
    else:
        write_json(
            folder / "preprocessor_config.json", _processor(loaded, facts["image_size"], facts.get("resize"))
        )
    trust = ", trust_remote_code=True" if model.is_remote_code() else ""
    return f"transformers.AutoModelFor{kind}.from_pretrained({str(folder.name)!r}{trust})"


def _save_pretrained(saved: Any, folder: Path) -> None:
    try:
        saved.save_pretrained(folder)
    except Exception as error:  # on a full disk safetensors and tokenizers raise kinds of their own
        raise RunError(f"cannot write the {type(saved).__name__} to {folder} ({one_line(error)})") from error


def _processor(loaded: LoadedModel, size: int, resize: str | None) -> dict[str, Any]:
    """Return the configuration of an image processor that prepares images as fine-tuning did."""
    rule = Resize.parse(resize, size) if resize else Resize(size, size)
    if loaded.bgr and (any(loaded.mean) or len(set(loaded.std)) > 1):
        raise RunError("the network takes blue first and scales channels: no image processor does both")
    own: dict[str, Any] = {"image_processor_type": "CLIPImageProcessor", "rescale_factor": 1 / 255}
    if loaded.bgr:  # resizes, crops and rescales, without mean and std
        factor = 1 / (255 * loaded.std[0])
        own = {"image_processor_type": "MobileViTImageProcessor", "rescale_factor": factor}
        own["do_flip_channel_order"] = True
    return {
        **own,
        "do_resize": bool(rule.edge),
        "size": {"shortest_edge": rule.edge}
        if rule.keeps_aspect
        else dict.fromkeys(("height", "width"), rule.edge),
        "resample": int(FILTERS[rule.resample]),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": list(loaded.mean),
        "image_std": list(loaded.std),
    }


def _save_plain(loaded: LoadedModel, folder: Path, facts: dict[str, Any]) -> str:
    tensors = {**dict(loaded.model.named_parameters()), **dict(loaded.model.named_buffers())}
    save_tensors(folder / "model.safetensors", tensors, loaded.seen.metadata())
    config = {
        **facts,
        "format": "hesstune",
        "head": list(loaded.heads),
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        "bgr": loaded.bgr,
        "torch": torch.__version__,
    }
    write_json(folder / "config.json", config)
    if loaded.tokenizer is not None:
        _save_pretrained(loaded.tokenizer, folder)
    weights = f"{folder.name}/model.safetensors"
    text = ", text=True" if loaded.tokenizer is not None else ""
    stored = main_dtype(loaded.model.parameters())
    dtype = f", dtype={stored!r}" if stored != "float32" else ""
    # A module given in Python has no name; the user's own stands in its place.
    spec = MODULE if facts["model"] == MODULE else repr(facts["model"])
    return (
        f"hesstune.models.load_model({spec}, {len(facts['classes'])}, weights={weights!r}, "
        f'head_init="keep", head={list(loaded.heads)}{dtype}{text}).model'
    )
