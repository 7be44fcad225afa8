"""L1-SP: cross-entropy plus α ‖w − w⁽ˢ⁾‖₁ + β ‖head − its start‖₁.

Source: Li, Grandvalet, Davoine 2018, equation 4.
"""

from __future__ import annotations

from hesstune.methods._setup import Option
from hesstune.methods.l2_sp import L2SP


class L1SP(L2SP):
    """Cross-entropy with an absolute pull towards the starting point."""

    kind = "l1"
    own_options = {
        "alpha": Option(1e-4, "the order of L1 penalties for networks", search=(1e-6, 1e-2), log=True),
        "beta": Option(1e-4, "as alpha", search=(1e-6, 1e-2), log=True),
    }


METHOD = L1SP
