"""Write docs/networks.md from the list of networks in tests/zoo.

python benchmarks/write_networks.py
"""

from __future__ import annotations

import sys
from typing import Any

from records import DOCS

PAGE = DOCS / "networks.md"

TEXT = """# Tested networks

*This page is written by `python benchmarks/write_networks.py` from the list in `tests/zoo`.*

`make test-slow` builds each of these {count} networks with few weights and runs it through:

1. a training step with the consistent loss and the distance constraint; afterwards every layer is inside its
   constraint radius;
2. evaluation mode, before and after a change of the weights;
3. `measure` and `noise_stability`. An early and a late layer are compared with the dense Hessian of one
   example in float64. The network is afterwards as it was;
4. `load_model` with a new classifier head: from the module, and for transformers from a saved folder.

Versions: transformers 5.23, timm 1.0.31, torchvision 0.28. *Works* means that all of it passes. *Refused*
means that hesstune raises the named error instead of returning a wrong result. The networks of timm and
torchvision are skipped if the package is not installed.

{tables}
"""


def page() -> str:
    """Return the page."""
    networks = _networks()
    tables = "\n\n".join(_table(library, networks) for library in dict.fromkeys(n.library for n in networks))
    return TEXT.format(count=len(networks), tables=tables)


def _networks() -> list[Any]:
    sys.path.insert(0, str(DOCS.parent / "tests" / "zoo"))
    from zoo_networks import NETWORKS

    return list(NETWORKS)


def _table(library: str, networks: list[Any]) -> str:
    rows = [f"## {library}", "", "| network | reads | result |", "|---|---|---|"]
    for network in networks:
        if network.library == library:
            rows.append(f"| `{network.name}` | {network.reads} | {_result(network)} |")
    return "\n".join(rows)


def _result(network: Any) -> str:
    if network.refused is None:
        return "works"
    refused = network.refused
    step = {"train": "training", "measure": "`measure`"}[refused.by]
    return f"refused by {step} with `{refused.error.__name__}`: {refused.why}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
