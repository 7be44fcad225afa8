"""The exact path: layers after which only piecewise-linear operations come, by first derivatives alone."""

from hesstune._former import former_names

_NOW = {
    "ExactForms": "forms.LogitForms",
    "LogitFactor": "factor.LogitFactor",
    "exact_by_forward_mode": "forward_mode.exact_by_forward_mode",
    "exact_forms": "backward_mode.exact_forms",
    "sources": "passes.sources",
}

__getattr__ = former_names(__name__, **{name: f"{__name__}.{now}" for name, now in _NOW.items()})
