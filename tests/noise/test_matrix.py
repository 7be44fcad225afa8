import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesstune import NoiseMatrix
from hesstune.errors import DataError, HesstuneWarning, NoiseMatrixError
from hesstune.noise.matrix import NEAR_GUESSING, rate_matrix

classes = st.integers(2, 12)


@given(classes, st.floats(0, 1))
def test_symmetric_and_pair_change_a_label_at_the_rate(k, rate):
    limits = {"symmetric": (k - 1) / k, "pair": 0.5}
    for kind, limit in limits.items():
        build = getattr(NoiseMatrix, kind)
        if rate > limit - 1e-9:
            with pytest.raises(NoiseMatrixError):
                build(k, rate)
        elif rate > NEAR_GUESSING * limit:
            with pytest.warns(HesstuneWarning, match=f"{rate:.3g}"):
                build(k, rate)
        else:
            np.testing.assert_allclose(build(k, rate).array, rate_matrix(kind, k, rate), atol=1e-15)
    rate_of = {kind: NoiseMatrix(rate_matrix(kind, k, rate)) for kind in limits}
    for F in rate_of.values():
        np.testing.assert_allclose(F.array.sum(axis=1), 1, atol=1e-12)
        np.testing.assert_allclose(1 - np.diagonal(F.array), rate, atol=1e-12)
    np.testing.assert_allclose(rate_of["symmetric"].array[0, 1:], rate / (k - 1), atol=1e-12)


def test_corruption_has_the_rates_and_leaves_labels_and_the_global_state():
    assert NoiseMatrix.pair(3, 0.2).array.tolist() == [[0.8, 0.2, 0], [0, 0.8, 0.2], [0.2, 0, 0.8]]
    true, state = np.repeat(np.arange(5), 8000), np.random.get_state()[1].copy()  # noqa: NPY002
    for kind in ("symmetric:0.4", "pair:0.3"):
        F = NoiseMatrix.parse(kind, 5)
        noisy = F.corrupt(true, seed=3)
        counts = np.array([np.bincount(noisy[true == i], minlength=5) for i in range(5)]) / 8000
        # Five standard errors of a share over 8,000 draws.
        np.testing.assert_allclose(counts, F.array, atol=5 * np.sqrt(0.25 / 8000))
        assert abs((noisy != true).mean() - F.rate) < 5 * np.sqrt(0.25 / 40000)
        assert (noisy == F.corrupt(true, 3)).all()
        assert (noisy != F.corrupt(true, 2)).any()
    assert (true == np.repeat(np.arange(5), 8000)).all()
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert (NoiseMatrix.identity(5).corrupt(true) == true).all()


@given(classes, st.integers(0, 10**6))
def test_inverse_undoes_f_and_its_rows_sum_to_one(k, seed):
    rng = np.random.default_rng(seed)
    F = NoiseMatrix(0.5 * np.eye(k) + 0.5 * rng.dirichlet(np.ones(k), size=k))
    np.testing.assert_allclose(F.array @ F.inverse, np.eye(k), atol=1e-9)
    np.testing.assert_allclose(F.inverse.sum(axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(F.condition, np.linalg.cond(F.array), rtol=1e-6)


@pytest.mark.parametrize("case", [("symmetric", 4, 0.75), ("pair", 4, 0.5)])
def test_singular_matrices_corrupt_but_do_not_invert(case):
    F = NoiseMatrix(rate_matrix(*case))
    assert F.condition == float("inf")
    assert len(F.corrupt(np.zeros(5, dtype=int))) == 5
    with pytest.raises(NoiseMatrixError, match=r"singular.*regularized"):
        _ = F.inverse
    np.testing.assert_allclose(F.regularized(0.1).inverse.sum(axis=1), 1, atol=1e-9)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([[0.5, 0.5]], "square"),
        ([[1.0]], "at least 2"),
        ([[0.5, 0.4], [0, 1]], "row 0 sums to 0.9"),
        ([[1.5, -0.5], [0, 1]], "row 0, column 1"),
        ([[float("nan"), 1], [0, 1]], "finite"),
        ([["a", "b"], ["c", "d"]], "numbers"),
        ([[0.9, 0.3], [0.1, 0.7]], "from_column_stochastic"),
    ],
)
def test_wrong_arrays_say_what_is_wrong(array, message):
    with pytest.raises(NoiseMatrixError, match=message):
        NoiseMatrix.from_array(array)


def test_arrays_are_copied_read_only_and_transposed_from_columns():
    F = NoiseMatrix.from_column_stochastic([[0.9, 0.3], [0.1, 0.7]])
    np.testing.assert_allclose(F.array, [[0.9, 0.1], [0.3, 0.7]])
    array = np.eye(3)
    F = NoiseMatrix(array)
    array[0, 0] = 0
    assert F.array[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        F.array[0, 0] = 0


@pytest.mark.parametrize("text", ["[[1, 2]", "{}", '"x"', "[]", json.dumps({"matrix": None}), "[[1],[2,3]]"])
def test_damaged_files_are_refused(tmp_path, text):
    path = tmp_path / "matrix.json"
    path.write_text(text)
    with pytest.raises(NoiseMatrixError):
        NoiseMatrix.load(path)


def test_wrong_kinds_rates_and_labels_are_refused():
    with pytest.raises(NoiseMatrixError, match="did you mean 'symmetric'"):
        NoiseMatrix.parse("symetric:0.3", 3)
    with pytest.raises(NoiseMatrixError, match="lots"):
        NoiseMatrix.parse("pair:lots", 3)
    with pytest.raises(NoiseMatrixError, match=r"1\.5"):
        NoiseMatrix.symmetric(3, 1.5)
    for labels in ([0, 3], [0.5, 1.0]):
        with pytest.raises(DataError):
            NoiseMatrix.symmetric(3, 0.1).corrupt(labels)
    for text in ("0.9", "pair:0.6"):  # no loss can correct it
        with pytest.raises(NoiseMatrixError):
            NoiseMatrix.parse(text, 4)
        assert NoiseMatrix.parse(text, 4, any_rate=True).rate == pytest.approx(float(text[-3:]))
    assert NoiseMatrix.parse("0.3", 3) == NoiseMatrix.symmetric(3, 0.3)


@pytest.mark.parametrize("name", ["f.csv", "f.JSON", "F.NPY"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
def test_files_of_each_kind_as_spreadsheets_and_other_systems_write_them(tmp_path, name, mark):
    F = NoiseMatrix.pair(3, 0.2)
    path = tmp_path / name
    if name.endswith("NPY"):
        with path.open("wb") as file:
            np.save(file, F.array)
    elif name.endswith("csv"):
        rows = "\r\n".join(",".join(map(str, row)) for row in F.array.tolist())
        path.write_bytes(mark + rows.encode())
    else:
        F.save(path)
        path.write_bytes(mark + path.read_bytes())
    assert NoiseMatrix.load(path) == NoiseMatrix.parse(str(path), 3) == F
    with pytest.raises(NoiseMatrixError, match="3 classes, but the data has 4"):
        NoiseMatrix.parse(str(path), 4)


SWAPPED = [[0.1, 0.9, 0.0], [0.9, 0.1, 0.0], [0.0, 0.3, 0.7]]
WEAK = [[0.4, 0.6, 0.0], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]]
NEAR = [[0.36, 0.32, 0.32], [0.32, 0.36, 0.32], [0.3, 0.3, 0.4]]


@pytest.mark.parametrize("suffix", ["json", "csv", "npy"])
def test_a_stated_matrix_of_random_labels_is_refused_and_a_weak_one_warns(tmp_path, suffix):
    path = tmp_path / f"F.{suffix}"

    def stated(matrix):
        text = json.dumps(matrix) if suffix == "json" else "\n".join(",".join(map(str, r)) for r in matrix)
        np.save(path, matrix) if suffix == "npy" else path.write_text(text)
        return NoiseMatrix.parse(str(path), 3, ["a", "b", "c"])

    shifted = np.roll(np.eye(3) * 0.9 + 0.1 / 3, 1, axis=1)  # rows in another order
    for matrix in (SWAPPED, shifted.tolist(), rate_matrix("symmetric", 3, 0.9).tolist()):
        with pytest.raises(NoiseMatrixError, match=r"0\.\d+ is not below .*random"):
            stated(matrix)
        assert NoiseMatrix(matrix).corrupt([0, 1, 2]).shape == (3,)  # an experiment may
    with pytest.warns(HesstuneWarning, match=r"class a are labelled b \(0\.6\)") as given:
        F = stated(WEAK)
    assert len(given) == 1
    F.check_identifiable(["a", "b", "c"])  # it warns once
    with pytest.warns(HesstuneWarning, match="0.627 is close to"):
        stated(NEAR)
    assert stated(rate_matrix("pair", 3, 0.4).tolist()).k == 3
