"""Few-shot subsets against NumPy's frozen legacy permutation; dev is the end of the training draw."""

from __future__ import annotations

import numpy as np
import pytest

from nora.tasks.sampling import draw_subsets


def test_golden_draw_of_ten_rows() -> None:
    """np.random.RandomState(0).permutation(10) is 2 8 4 9 1 6 7 3 0 5 in every NumPy (the stream is frozen)."""
    rows = [f"train {i}" for i in range(10)]
    test_rows = [f"test {i}" for i in range(10)]
    subsets = draw_subsets(rows, test_rows, seed=0, num_train=3, num_dev=2, num_test=4)
    assert subsets.train == ["train 2", "train 8", "train 4"]
    assert subsets.dev == ["train 9", "train 1"]
    assert subsets.test == ["test 2", "test 8", "test 4", "test 9"]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1])
@pytest.mark.parametrize("sizes", [(250, 56, 128, 64, 56), (2490, 277, 1000, 500, 1000), (554, 104, 1000, 500, 1000)])
def test_equals_the_protocols_own_steps(seed: int, sizes: tuple[int, int, int, int, int]) -> None:
    """MeZO: np.random.seed(s); np.random.permutation(n)[:train + dev]; the last num_dev of these are dev."""
    n, m, num_train, num_dev, num_test = sizes
    subsets = draw_subsets(range(n), range(m), seed=seed, num_train=num_train, num_dev=num_dev, num_test=num_test)
    state = np.random.get_state()  # the protocol's own words use the global generator; put it back
    np.random.seed(seed)
    drawn = np.random.permutation(n)[: num_train + num_dev].tolist()
    np.random.seed(seed)
    test = np.random.permutation(m)[:num_test].tolist()
    np.random.set_state(state)
    assert subsets.train == drawn[:-num_dev]
    assert subsets.dev == drawn[-num_dev:]
    assert subsets.test == test
    assert not set(subsets.train) & set(subsets.dev)


def test_small_splits_give_all_they_have() -> None:
    """WSC: 554 rows asked for 1,000 + 500 leave 54 to train on; CB: 250 asked for 1,000 + 100 leave 150."""
    for rows, num_dev, expected in ((554, 500, 54), (250, 100, 150)):
        subsets = draw_subsets(range(rows), range(9), seed=3, num_train=1000, num_dev=num_dev, num_test=1000)
        assert len(subsets.train) == expected and len(subsets.dev) == num_dev and len(subsets.test) == 9
        assert sorted(subsets.train + subsets.dev) == list(range(rows))


@pytest.mark.parametrize("rows", [0, 1, 10])
def test_nothing_left_to_train_on_is_an_error(rows: int) -> None:
    with pytest.raises(ValueError, match=f"has {rows} rows: none are left beside 10 dev rows; lower task.num_dev"):
        draw_subsets(range(rows), range(5), seed=0, num_train=5, num_dev=10, num_test=5)


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    draw_subsets(range(20), range(5), seed=0, num_train=5, num_dev=10, num_test=5)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]
