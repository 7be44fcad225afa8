"""Write the data of the tutorial on images: real digits, with labels of simulated cheap annotators.

python images.py [FOLDER]

FOLDER (default: photos) gets train/CLASS/*.png with labels that may be wrong, and test/CLASS/*.png with
correct labels. FOLDER_new gets images without labels, and FOLDER_truth.csv the true class of every training
image.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "photos")
digits, rng = load_digits(), np.random.default_rng(0)
order = rng.permutation(len(digits.target))
train, test, new = order[:1000], order[1000:1500], order[1500:]

# In a quarter of the images an annotator takes the digit for one that looks alike, in 5 % for any digit.
alike = np.array([6, 7, 3, 8, 9, 3, 0, 1, 3, 4])
draw, given = rng.random(len(digits.target)), digits.target.copy()
given = np.where(draw < 0.25, alike[given], np.where(draw < 0.3, rng.integers(0, 10, len(given)), given))


def write(row, path):
    """Write one image at eight times its size."""
    path.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.uint8(digits.images[row] * 255 / 16))
    image.resize((64, 64), Image.Resampling.BICUBIC).save(path / f"{row:04d}.png")


for row in train:
    write(row, folder / "train" / str(given[row]))
for row in test:
    write(row, folder / "test" / str(digits.target[row]))
for row in new:
    write(row, folder.with_name(f"{folder.name}_new"))
with folder.with_name(f"{folder.name}_truth.csv").open("w", newline="") as file:
    rows = [(f"train/{given[row]}/{row:04d}.png", digits.target[row]) for row in sorted(train)]
    csv.writer(file).writerows([("id", "true_label"), *rows])
wrong = int((given != digits.target)[train].sum())
print(f"{folder}: 1000 training images, {wrong} with a wrong label; 500 test images with correct labels")
