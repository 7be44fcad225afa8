"""hesstune as a scikit-learn classifier with a known noise matrix.

40 % of the images of each digit are labelled as the next digit, at a known rate.
"""

import sys

from sklearn.datasets import load_digits

import hesstune as ht
from hesstune.integrations import RobustClassifier

seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
digits = load_digits()
images, clean = digits.images[:600] / 16, digits.target[:600]
noisy = ht.NoiseMatrix.pair(10, 0.4).corrupt(clean[:300], seed=seed)

plain = RobustClassifier(method="vanilla", train="head", image_size=32)
robust = RobustClassifier(noise_matrix="pair:0.4", train="head", image_size=32)
for name, model in (("plain", plain), ("robust", robust)):
    model.fit(images[:300], noisy)
    print(f"{name}: test accuracy on true labels {model.score(images[300:], clean[300:]):.3f}")
print(robust.predict_proba(images[300:302]).round(2))
