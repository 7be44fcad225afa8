"""When Lanczos stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hesstune.curvature.smooth.quadrature import Bracket, Krylov, extrapolated, positive_bracket
from hesstune.errors import ConfigError

__all__ = ["Stopping"]

# A bracket costs small eigenproblems, so it is not looked at after every product.
_FIRST_LOOK, _LOOK_EVERY = 4, 2
# Without proof: how far back the value is compared, how much wider than `tol` the bracket may be, and
# how far apart, in units of `tol`, the two estimates may be that err on opposite sides most often.
_LOOKS_BACK, _TRUST, _AGREE = 2, 6.0, 2.0


@dataclass(frozen=True)
class Stopping:
    """When Lanczos stops.

    Attributes:
        steps: Take exactly this many products (fewer only where the Krylov space is exhausted);
            None: as many as `tol` asks for.
        tol: Stop once `value` is within this relative error of the truth.
        most: The largest number of products that `tol` may take.
        proof: Whether the bracket must prove the error. Otherwise it is enough that the value moved
            by less than `tol` over the last four products, that the bracket's error is below 6·tol
            and that its harmonic mean is within 2·tol of the extrapolated value, which is taken: it
            is a good estimate long before the bracket is narrow.
    """

    steps: int | None = None
    tol: float = 0.03
    most: int = 64
    proof: bool = True

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps must be at least 1; got {self.steps}")
        if not self.tol > 0 or self.most < 1:
            raise ConfigError(
                f"tol must be positive and most at least 1; got tol={self.tol}, most={self.most}"
            )

    def run(self, krylov: Krylov) -> Bracket:
        """Advance the recurrence until it is time to stop; return the bracket."""
        limit = self.most if self.steps is None else self.steps
        looks: list[Bracket] = []
        while krylov.products < limit:
            krylov.advance()
            if bool(krylov.exhausted().all()):
                break
            due = krylov.products >= _FIRST_LOOK and krylov.products % _LOOK_EVERY == 0
            if self.steps is None and due:
                looks.append(positive_bracket(krylov.tridiagonal()))
                if self.reached(looks):
                    return self.best(looks)
        return positive_bracket(krylov.tridiagonal())

    def reached(self, looks: Sequence[Bracket]) -> bool:
        """Tell whether `tol` is reached, from the brackets after every second product."""
        newest = looks[-1]
        done = newest.error <= self.tol
        if not self.proof and len(looks) > _LOOKS_BACK:
            value, before = extrapolated(looks).value, extrapolated(looks[:-_LOOKS_BACK]).value
            settled = (value - before).abs() <= self.tol * value
            settled &= (value - newest.value).abs() <= _AGREE * self.tol * value
            done |= settled & (newest.error <= _TRUST * self.tol)
        return bool(done.all())

    def best(self, looks: Sequence[Bracket]) -> Bracket:
        """Return the newest bracket: with the value of least provable error, or the extrapolated one."""
        return looks[-1] if self.proof else extrapolated(looks)
