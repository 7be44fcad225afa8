"""Suspected label errors with names, ids and texts that HTML, scripts and spreadsheets could misread."""

import numpy as np

from hesstune.labeling.clean import LabelIssues
from hesstune.labeling.review import contents_of
from hesstune.labeling.sources import Target
from hesstune.noise.matrix import NoiseMatrix

ODD = ['cat "big"', "<b>dog</b></script><script>alert(1)</script>", "a, b\nc", "=1+1", "'=x", "&amp;"]
ODD_IDS = ["=cmd|' /C calc'!A0", "-5", "'=quoted", 'a "b", c', "<!--<script>", "ü\n１", "＝1"]


def suspected(n=40, paths=None, texts=True):
    """n suspected errors, the first ones the most probable; the suggested class follows the given one."""
    k = len(ODD)
    given, wrong = np.arange(n) % k, np.linspace(0.95, 0.6, n)
    posterior = np.zeros((n, k))
    posterior[np.arange(n), given] = 1 - wrong
    posterior[np.arange(n), (given + 1) % k] = wrong
    ids = [ODD_IDS[at] if at < len(ODD_IDS) else f"r{at}" for at in range(n)]
    true = [ODD[c] for c in given]
    words = [(f"text {at} <script>alert(2)</script> {'word ' * 30}", None) for at in range(n)]
    target = Target(ids, true, paths=paths, texts=words if texts and paths is None else None)
    return LabelIssues(
        ids, ODD, given, posterior, np.zeros(n, dtype=bool), NoiseMatrix.identity(k), "by <class>", target,
        contents=contents_of(target, ids),
    )  # fmt: skip
