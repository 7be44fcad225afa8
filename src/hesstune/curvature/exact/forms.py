"""What the exact path returns: forms of J_iᵀ Λ J_i, and from them those of a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["ExactForms", "LogitForms"]


@dataclass
class ExactForms:
    """v_iᵀ H_i⁺ v_i of B examples and L layers for which it has a closed form, float64 on the CPU.

    Attributes:
        names: The L layers.
        quadratic: v_iᵀ H_i⁺ v_i, (B, L).
        lower: A bound from below, (B, L): equal to `quadratic` unless classes were skipped.
        upper: A bound from above, (B, L): likewise; with skipped classes it holds with probability
            99 % an entry.
        trace: Tr H_i⁺, (B, L), or None where not asked for.
        trace_stderr: Its standard error, (B, L): of the skipped classes' part; 0 where none was.
        spectrum: The K − 1 largest eigenvalues of H_i, descending, (B, L, K − 1), or None where not asked
            for; the others are 0.
        losses: ℓ of every example, (B,).
        passes: How many backward (or forward-mode) passes were taken.
        all_passes: K − 1.
    """

    names: list[str]
    quadratic: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    trace: torch.Tensor | None
    trace_stderr: torch.Tensor | None
    spectrum: torch.Tensor | None
    losses: torch.Tensor
    passes: int
    all_passes: int


@dataclass
class LogitForms:
    """Forms of J_iᵀ Λ J_i for B examples and L layers, in float64.

    Attributes:
        quadratic: v_iᵀ J_iᵀ Λ J_i v_i, (B, L).
        lower: A bound from below, (B, L), as in `ExactForms`.
        upper: A bound from above, (B, L).
        trace: Tr J_iᵀ Λ J_i, (B, L), or None.
        spectrum: The K − 1 largest eigenvalues, descending, (B, L, K − 1), or None.
        passes: How many backward (or forward-mode) passes were taken.
        trace_stderr: The standard error of `trace`, (B, L), where classes were skipped.
        trace_upper: A bound of `trace` from above, (B, L), likewise.
    """

    quadratic: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    trace: torch.Tensor | None
    spectrum: torch.Tensor | None
    passes: int
    trace_stderr: torch.Tensor | None = None
    trace_upper: torch.Tensor | None = None

    @classmethod
    def of_no_layer(cls, logits: torch.Tensor, *, trace: bool, spectrum: bool) -> LogitForms:
        """Return the forms of L = 0 layers for logits (B, K)."""
        none = logits.new_zeros((len(logits), 0), dtype=torch.float64)
        values = logits.new_zeros((len(logits), 0, logits.shape[1] - 1), dtype=torch.float64)
        return cls(none, none, none, none if trace else None, values if spectrum else None, 0)

    def with_rest(
        self, probed: Sequence[tuple[torch.Tensor, torch.Tensor | None]], wide: float, trace_wide: float
    ) -> LogitForms:
        """Return these forms with what probes say of the classes that are left out so far.

        Args:
            probed: Each probe's terms of the entries, and of the traces or None, (B, L).
            wide: An entry's rest is at most this times the probes' mean, with 99 %.
            trace_wide: The same of a trace's.
        """
        rest = torch.stack([entry for entry, _ in probed]).mean(0)
        upper = self.quadratic + wide * rest
        forms = LogitForms(self.quadratic + rest, self.quadratic, upper, None, None, self.passes)
        norms = [norm for _, norm in probed if norm is not None]
        if self.trace is not None and norms:
            more = torch.stack(norms).mean(0)
            forms.trace, forms.trace_upper = self.trace + more, self.trace + trace_wide * more
            forms.trace_stderr = more * (2 / len(norms)) ** 0.5  # of one direction alone, the most it can be
        return forms

    def uncertain(self, tol: float) -> float:
        """Return the largest of what the bounds leave open, over `tol` times what they are sure of."""
        pairs = [(self.upper, self.lower)]
        if self.trace is not None and self.trace_upper is not None:
            pairs.append((self.trace_upper, self.trace))
        return max(float(((upper - lower) / (tol * lower).clamp(min=1e-300)).max()) for upper, lower in pairs)

    def of_loss(
        self, names: Sequence[str], weight: torch.Tensor, losses: torch.Tensor, classes: int
    ) -> ExactForms:
        """Return the forms of H_i⁺ where the loss's Hessian in the logits is w·Λ.

        Args:
            names: The L layers.
            weight: w of every example, (B,); a negative one leaves no positive part.
            losses: ℓ of every example, (B,).
            classes: K.
        """
        each = weight.clamp(min=0)[:, None]
        return ExactForms(
            names=list(names),
            quadratic=(each * self.quadratic).cpu(),
            lower=(each * self.lower).cpu(),
            upper=(each * self.upper).cpu(),
            trace=None if self.trace is None else (each * self.trace).cpu(),
            trace_stderr=None if self.trace_stderr is None else (each * self.trace_stderr).cpu(),
            spectrum=None if self.spectrum is None else (each[:, :, None] * self.spectrum).cpu(),
            losses=losses.detach().double().cpu(),
            passes=self.passes,
            all_passes=classes - 1,
        )
