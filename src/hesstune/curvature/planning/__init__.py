"""How each layer is measured: what the graph, a few examples and probes say of it, and what is refused."""

from hesstune._former import former_names

_NOW = {
    "LayerPlan": "LayerPlan",
    "MeasureMethod": "MeasureMethod",
    "Method": "MeasureMethod",
    "MeasurePlan": "MeasurePlan",
    "make_measure_plan": "make_measure_plan",
    "make_plan": "make_measure_plan",
}

__getattr__ = former_names(__name__, **{name: f"{__name__}.plan.{now}" for name, now in _NOW.items()})
