"""The exact path: layers after which only piecewise-linear operations come, by first derivatives alone."""
