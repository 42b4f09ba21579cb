"""The MeZO protocol's subsets: train and dev from the training split, test from the validation split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nora.tasks.example import Row


class Subsets(NamedTuple):
    """Rows of one seed's training, dev and test sets."""

    train: list[Row]
    dev: list[Row]
    test: list[Row]


def draw_subsets(
    train_rows: Sequence[Row], test_rows: Sequence[Row], *, seed: int, num_train: int, num_dev: int, num_test: int
) -> Subsets:
    """One permutation of each split by NumPy's legacy generator, seeded alike; dev is the end of the training draw.

    Where the split is smaller than asked for, everything is used and dev is still cut from the end (so WSC trains on
    54 examples at 1,000 + 500). ValueError where nothing would be left to train on.
    """
    order = np.random.RandomState(seed).permutation(len(train_rows))[: num_train + num_dev]
    if len(order) <= num_dev:
        raise ValueError(
            f"the training split has {len(train_rows)} rows: none are left beside {num_dev} dev rows; "
            "lower task.num_dev"
        )
    cut = len(order) - num_dev
    test_order = np.random.RandomState(seed).permutation(len(test_rows))[:num_test]
    return Subsets(
        train=[train_rows[i] for i in order[:cut]],
        dev=[train_rows[i] for i in order[cut:]],
        test=[test_rows[i] for i in test_order],
    )
