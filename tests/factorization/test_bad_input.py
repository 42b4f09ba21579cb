"""What a user can get wrong is a ValueError with the value, the requirement and the way out."""

import pytest
import torch

from nora.factorization import (
    Asymmetric,
    DenseAsymmetric,
    DenseSymmetric,
    Staircase,
    State,
    Symmetric,
    factorize,
    iterate,
    solvers,
    starts,
)
from nora.streams import generator

I5 = torch.eye(5, dtype=torch.float64)


def sym(**change):
    return Symmetric.make(**({"m": 6, "spectrum": (1.0, 0.5), "rank": 2, "generator": generator(0, "basis")} | change))


BAD = {
    "non-square": (lambda: DenseSymmetric(A=torch.ones(3, 4), rank=1), r"given 3 x 4, required square.*DenseAsym"),
    "non-symmetric": (lambda: DenseSymmetric(A=I5 + torch.triu(I5.roll(1, 1)), rank=1), "required symmetric"),
    "indefinite": (lambda: DenseSymmetric(A=torch.diag(torch.tensor([1.0, -0.5])), rank=1), r"-5.000e-01, required"),
    "negative spectrum": (lambda: sym(spectrum=(1.0, -1.0)), r"given smallest value -1\.0, required all > 0"),
    "zero spectrum": (lambda: sym(spectrum=(1.0, 0.0)), "required all > 0"),
    "long spectrum": (lambda: sym(spectrum=(1.0,) * 7), "given 7 values, required 1 to"),
    "rank 0": (lambda: sym(rank=0), "rank: given 0, required 1 <= rank"),
    "rank too high": (lambda: sym(rank=7), "rank: given 7, required 1 <= rank <= min"),
    "rank of a dense A": (lambda: DenseAsymmetric(A=torch.ones(3, 4), rank=4), "= 3 for a 3 x 4"),
    "nan": (lambda: DenseAsymmetric(A=I5 * float("nan"), rank=1), "non-finite entries"),
    "inf spectrum": (lambda: sym(spectrum=(float("inf"), 1.0)), "non-finite entries"),
    "float16": (lambda: DenseAsymmetric(A=I5.half(), rank=1), "given dtype float16, required float64"),
    "integers": (lambda: DenseAsymmetric(A=I5.long(), rank=1), "given dtype torch.int64"),
    "vector": (lambda: DenseAsymmetric(A=I5[0], rank=1), r"shape \(5,\), required a matrix"),
    "skew basis": (lambda: Symmetric(Q=torch.ones(5, 2), s=torch.ones(2), rank=1), "required orthonormal"),
    "basis of another spectrum": (lambda: Symmetric(Q=I5[:, :3], s=I5[0, :2] + 1, rank=1), "required one per value"),
    "missing generator": (lambda: sym(generator=None), "generator: given None, required a torch.Generator"),
    "start without generator": (lambda: starts.load("nystrom")(sym(), generator=None), "required a torch.Generator"),
    "xi": (lambda: starts.load("nystrom")(sym(), generator=generator(0, "i"), xi=0.0), "xi: given 0.0, required"),
    "eta": (lambda: solvers.load("gd")(eta=-1.0), "eta: given -1.0, required"),
    "eta nan": (lambda: solvers.load("scaled_gd")(eta=float("nan")), "eta: given nan"),
    "damping": (lambda: solvers.load("scaled_gd_lambda")(eta=0.5, damping=0.0), "damping: given 0.0"),
    "rcond": (lambda: solvers.load("scaled_gd_pinv")(eta=0.5, rcond=-1.0), "rcond: given -1.0"),
    "staircase": (lambda: Staircase(values=(), length=5), "given 0 values"),
    "singular Gram": (
        lambda: iterate(sym(rank=3), solvers.load("scaled_gd")(eta=0.5), _nystrom(sym(rank=3)), budget=1),
        "singular Gram matrix.*scaled_gd_pinv or scaled_gd_lambda",
    ),
    "zero start": (
        lambda: iterate(sym(), solvers.load("scaled_gd")(eta=0.5), State(torch.zeros(6, 2).double()), budget=1),
        "singular Gram matrix",
    ),
    "shape": (
        lambda: iterate(sym(), solvers.load("gd")(eta=0.5), State(torch.zeros(6, 3)), budget=1),
        r"given factors \[\(6, 3\)\].*required \[\(6, 2\)\]",
    ),
    "tolerance": (
        lambda: iterate(sym(), solvers.load("gd")(eta=0.5), _nystrom(sym()), budget=1, tolerance=0.0),
        "tolerance > 0",
    ),
    "metric": (
        lambda: iterate(sym(), solvers.load("gd")(eta=0.5), _nystrom(sym()), budget=1, on="speed"),
        "on: given 'speed', required one of error",
    ),
    "no weak error when over-parametrised": (
        lambda: iterate(sym(rank=3), solvers.load("gd")(eta=0.5), _nystrom(sym(rank=3)), budget=1, on="weak"),
        "on: given 'weak'",
    ),
    "factorize float16": (lambda: factorize(I5.half(), 2, generator=generator(0, "f")), "float16"),
    "factorize rank": (lambda: factorize(I5, 6, generator=generator(0, "f")), "rank: given 6"),
    "factorize half a rank": (lambda: factorize(I5, 2.5, generator=generator(0, "f")), "rank: given 2.5.*an integer"),
    "factorize nan": (lambda: factorize(I5 / 0, 2, generator=generator(0, "f")), "non-finite"),
    "factorize generator": (lambda: factorize(I5, 2, generator=None), "generator: given None"),
    "factorize type": (lambda: factorize([[1.0]], 1, generator=generator(0, "f")), "given list without shape, dtype"),
    "factorize numpy": (lambda: factorize(I5.numpy(), 1, generator=generator(0, "f")), "from_numpy"),
    "factorize oversampling": (lambda: factorize(I5, 2, generator=generator(0, "f"), oversampling=-1), "given 0, -1"),
}


def _nystrom(problem):
    return starts.load("nystrom")(problem, generator=generator(0, "init"))


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "required" in str(caught.value) and ("given" in str(caught.value))


def test_asymmetric_spectrum_is_checked_too():
    with pytest.raises(ValueError, match="required all > 0"):
        Asymmetric.make(m=5, n=4, spectrum=(1.0, -2.0), rank=1, generator=generator(0, "basis"))
