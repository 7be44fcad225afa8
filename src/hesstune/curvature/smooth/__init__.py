"""The smooth path: H_i⁺ where H_i has negative eigenvalues, by Lanczos, with a bracket."""

from hesstune._former import former_names

_NOW = {
    "GaussNewtonScreen": "maxima.GaussNewtonScreen",
    "Sample": "maxima.Sample",
    "Screen": "maxima.GaussNewtonScreen",
    "SmoothSettings": "engine.CurvatureEngine",
    "smooth_brackets": "engine.CurvatureEngine.lanczos",
    "smooth_traces": "engine.CurvatureEngine.trace",
}

__getattr__ = former_names(__name__, **{name: f"hesstune.curvature.{now}" for name, now in _NOW.items()})
