"""All networks of the zoo, in the order of the page."""

from __future__ import annotations

from zoo_table import Network
from zoo_timm import TIMM_NETWORKS
from zoo_transformers import TRANSFORMERS

NETWORKS: list[Network] = [*TRANSFORMERS, *TIMM_NETWORKS]
