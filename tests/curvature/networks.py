"""Tiny networks, one for each kind of layer and of what may follow it, with one batch each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dense_hessians import block_hessian, positive_form, positive_trace
from hesstune.curvature.measure import measure
from hesstune.curvature.result import Measure
from hesstune.reference import Reference


@dataclass
class Case:
    """A network moved away from its reference, and a batch."""

    model: nn.Module
    ref: Reference
    inputs: Any
    targets: torch.Tensor


def mlp(act: type[nn.Module] = nn.ReLU, inputs: int = 5, width: int = 6, k: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), act(), nn.Linear(width, width), act(), nn.Linear(width, k))


class Cnn(nn.Module):
    """Batch norm, pooling, strides, groups, dilation, a residual sum, in-place and functional activations."""

    def __init__(self, k: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3, stride=2, padding="valid", groups=2)
        self.wide = nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=4)
        self.point = nn.Conv2d(4, 5, 1)
        self.down = nn.Conv2d(5, 5, (3, 1), padding=(1, 0), padding_mode="circular")
        self.head = nn.Linear(5, k)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        x = F.leaky_relu(self.grouped(F.max_pool2d(x, 3, stride=1, padding=1)), 0.1)
        x = x + F.relu6(self.wide(x))
        x = F.hardtanh(F.avg_pool2d(self.point(x), 2, stride=1), -2.0, 2.0)
        x = self.down(x).relu_()
        return self.head(x.mean((2, 3)))


class Sequence1d(nn.Module):
    """Two 1-D convolutions and an upsampling one, on a signal."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor] = torch.relu, k: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose1d(4, 3, 2, stride=2)
        self.second = nn.Conv1d(3, 4, 3, dilation=2, bias=False)
        self.head = nn.Linear(4, k)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.second(self.act(self.up(self.act(self.first(x))))))
        return self.head(x.amax(2))


class Cube(nn.Module):
    """One 3-D convolution with groups and stride."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1), groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.conv(x)).mean((2, 3, 4)))


class Attention(nn.Module):
    """Embedding, one block of one's own with masked attention, layer norm and GELU."""

    def __init__(self, width: int = 4, k: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 6)
        self.down = nn.Linear(6, width)
        self.head = nn.Linear(width, k)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, :].bool()))
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class TorchEncoder(nn.Module):
    """torch's own encoder layer, whose attention weights are used without a module call."""

    def __init__(self, batch_first: bool = True, k: int = 3) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.encoder = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.1, batch_first=batch_first)
        self.head = nn.Linear(4, k)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.encoder(x, src_key_padding_mask=mask == 0)
        return self.head(x[:, 0] if self.batch_first else x[0])


class AlsoFunctional(nn.Module):
    """Its first weight is used in one plain call and, in another way, once more."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor] = torch.relu) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 3), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.act(self.a(x))) + 0.5 * self.a.weight.square().sum() * x[:, :3]


def dense_values(case: Case, *loss: Any) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """v_iᵀ H_i⁺ v_i, (B, L), Tr H_i⁺, (B, L), and the eigenvalues of each layer, from dense Hessians."""
    forms, traces, spectra = [], [], []
    for name in case.ref.layers():
        hessian = block_hessian(case.model, case.inputs, case.targets, name, *loss)
        forms.append(positive_form(hessian, case.ref.difference(case.model, name)))
        traces.append(positive_trace(hessian))
        spectra.append(torch.linalg.eigvalsh(hessian).flip(1))
    return torch.stack(forms, 1), torch.stack(traces, 1), spectra


def check(
    model: nn.Module, ref: Reference, batches: list[Any], twins: list[Any] | None = None, **options: Any
) -> Measure:
    """Measure, and compare values and brackets of the measured entries with dense Hessians."""
    found = measure(model, ref, batches, **{"steps": 40, "tol": 1e-7, **options})
    for column, name in enumerate(found.names):
        v = ref.difference(model, name)
        forms = [positive_form(block_hessian(model, x, y, name), v) for x, y in twins or batches]
        rows = found.refined[:, column]
        truth, value = torch.cat(forms)[rows], found.quadratic[rows, column]
        torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        assert bool((found.lower[rows, column] <= truth * (1 + 1e-6) + 1e-9).all())
        assert bool((found.upper[rows, column] >= truth * (1 - 1e-6) - 1e-9).all())
    return found


SIZES = {"num_attention_heads": 2, "hidden_size": 4, "num_hidden_layers": 1, "intermediate_size": 6}


def tiny_bert(**options: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**SIZES, vocab_size=11, max_position_embeddings=8, num_labels=3, **options)
    return BertForSequenceClassification(config)


def tiny_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**SIZES, image_size=6, patch_size=3, num_channels=2, num_labels=3)
    return ViTForImageClassification(config)


def tiny_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2, n_inner=6, num_labels=3, pad_token_id=0
    )
    return GPT2ForSequenceClassification(config)


def _noise(*shape: int) -> Callable[[torch.Generator], torch.Tensor]:
    return lambda generator: torch.randn(*shape, generator=generator, dtype=torch.float64)


def _text(generator: torch.Generator) -> dict[str, torch.Tensor]:
    tokens = torch.randint(1, 7, (4, 5), generator=generator)
    mask = torch.ones(4, 5, dtype=torch.long)
    mask[1, 3:] = mask[2, 2:] = 0
    return {"tokens": tokens * mask, "mask": mask}


def _ids(generator: torch.Generator) -> dict[str, torch.Tensor]:
    text = _text(generator)
    return {"input_ids": text["tokens"], "attention_mask": text["mask"]}


def _vectors(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"x": _noise(4, 5, 4)(generator), "mask": _text(generator)["mask"]}


def _pixels(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"pixel_values": _noise(4, 2, 6, 6)(generator)}


_BUILDERS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], Any], int]] = {
    "mlp": (mlp, _noise(5, 5), 4),
    "mlp_two_classes": (lambda: mlp(k=2), _noise(5, 5), 2),
    "mlp_fifty_classes": (lambda: mlp(nn.LeakyReLU, 3, 4, 50), _noise(4, 3), 50),
    "mlp_one_example": (lambda: mlp(nn.ReLU6), _noise(1, 5), 4),
    "mlp_gelu": (lambda: mlp(nn.GELU), _noise(5, 5), 4),
    "cnn": (Cnn, _noise(4, 2, 9, 9), 3),
    "conv1d": (Sequence1d, _noise(4, 2, 9), 3),
    "conv1d_silu": (lambda: Sequence1d(F.silu), _noise(4, 2, 9), 3),
    "conv3d": (Cube, _noise(3, 2, 3, 5, 5), 3),
    "attention": (Attention, _text, 3),
    "torch_encoder": (TorchEncoder, _vectors, 3),
    "torch_encoder_sequence_first": (lambda: TorchEncoder(batch_first=False), _vectors, 3),
    "bert": (tiny_bert, _ids, 3),
    "vit": (tiny_vit, _pixels, 3),
    "gpt2": (tiny_gpt2, _ids, 3),
}
PIECEWISE_LINEAR = [
    "mlp",
    "mlp_two_classes",
    "mlp_fifty_classes",
    "mlp_one_example",
    "cnn",
    "conv1d",
    "conv3d",
]
SMOOTH = [name for name in _BUILDERS if name not in PIECEWISE_LINEAR]


def moved(model: nn.Module, scale: float, seed: int = 0) -> Reference:
    """Take the reference, then move every parameter a little."""
    ref = Reference.of(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))
    return ref


def build(name: str, scale: float = 0.3, seed: int = 0) -> Case:
    """Build a case in float64, in training mode, with a reference that is `scale` away."""
    make, inputs_of, classes = _BUILDERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().double().train()
    generator = torch.Generator().manual_seed(seed + 1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    ref = moved(model, scale, seed + 2)
    inputs = inputs_of(generator)
    size = len(inputs) if isinstance(inputs, torch.Tensor) else len(next(iter(inputs.values())))
    targets = torch.randint(0, classes, (size,), generator=generator)
    return Case(model, ref, inputs, targets)


def batches_of(case: Case, *sizes: int) -> list[tuple[Any, torch.Tensor]]:
    """Split the case's first examples into batches of these sizes."""
    start, out = 0, []
    for size in sizes:
        rows = slice(start, start + size)
        x = case.inputs
        part = x[rows] if isinstance(x, torch.Tensor) else {k: v[rows] for k, v in x.items()}
        out.append((part, case.targets[rows]))
        start += size
    return out
