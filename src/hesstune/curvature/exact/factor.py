"""The factor B of Λ = diag(p) − p pᵀ = B Bᵀ, the Hessian of cross-entropy in the logits."""

from __future__ import annotations

import torch

__all__ = ["LogitFactor"]


class LogitFactor:
    """The factor B of Λ = B Bᵀ for a batch of logits, one scaled column s_k at a time.

    Args:
        logits: (B, K).
    """

    def __init__(self, logits: torch.Tensor) -> None:
        log_p = torch.log_softmax(logits.detach().double(), dim=1)
        self.order = log_p.argsort(dim=1, descending=True, stable=True)
        self._top = self.order[:, :1]
        self._q = log_p.exp().scatter(1, self._top, 0.0)
        top_p = log_p.gather(1, self._top).exp()
        self._gamma = 1 / (1 + top_p.sqrt())
        self.sorted_q = self._q.gather(1, self.order[:, 1:])
        self._dtype = logits.dtype

    @property
    def columns(self) -> int:
        """K − 1."""
        return self.sorted_q.shape[1]

    @property
    def shares(self) -> torch.Tensor:
        """What the classes from each rank on hold of the unlikely mass, at most, (K − 1,)."""
        mass = self.sorted_q.flip(1).cumsum(1).flip(1)
        return (mass / mass[:, :1].clamp(min=1e-300)).amax(0)

    def seed(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return s_k, (B, K), and q_k, (B,), of each example's class of that rank."""
        coefficients = torch.zeros_like(self._q)
        coefficients.scatter_(1, self.order[:, rank + 1, None], 1.0)
        return self._combined(coefficients), self.sorted_q[:, rank]

    def probe(self, start: int, normals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one random combination of all columns from rank `start` on, scaled, and its weight.

        The expected squared product with it, times the weight, is the sum over those classes.

        Args:
            start: The first rank that is left out so far.
            normals: (K − 1,), standard normal, one a rank, so that it does not depend on the batch.
        """
        scale = self.sorted_q[:, start]
        ratio = (self.sorted_q[:, start:] / scale.clamp(min=1e-300)[:, None]).sqrt()
        ranked = torch.zeros_like(self._q)
        ranked[:, start + 1 :] = ratio * normals[start:].to(ratio)
        coefficients = torch.zeros_like(self._q).scatter(1, self.order, ranked)
        return self._combined(coefficients), scale

    def variance(self, u: torch.Tensor) -> torch.Tensor:
        """Return uᵀ Λ u from all of u, (B, K), in float64, centred on the likeliest class."""
        d = (u - u.gather(1, self._top)).double()
        mean = (self._q * d).sum(1, keepdim=True)
        top = (1 - self._gamma) / self._gamma  # √p_t
        return (self._q * (d - mean).square()).sum(1) + (top * mean).square().squeeze(1)

    def _combined(self, coefficients: torch.Tensor) -> torch.Tensor:
        total = coefficients.sum(1, keepdim=True)
        rows = coefficients - total * self._gamma * self._q
        shift = total * (1 - self._gamma * self._q.sum(1, keepdim=True))
        return rows.scatter_add(1, self._top, -shift).to(self._dtype)
