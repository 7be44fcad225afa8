"""hesstune as a scikit-learn classifier."""

from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

import hesstune as ht
from hesstune.integrations import RobustClassifier

digits = load_digits()
images, clean = digits.images[:500] / 16, digits.target[:500]
noisy = ht.NoiseMatrix.symmetric(10, 0.3).corrupt(clean[:300], seed=0)

model = RobustClassifier(train="head", image_size=32)
model.fit(images[:300], noisy)
print(f"test accuracy on true labels: {model.score(images[300:], clean[300:]):.3f}")
print(model.predict_proba(images[300:302]).round(2))

search = GridSearchCV(model, {"method": ["auto", "sklearn_cv"]}, cv=2)
search.fit(images[:300], noisy)  # scored on noisy labels
print(search.best_params_)
