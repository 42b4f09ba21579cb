"""One step of ScaledGD from the Nystrom start, as a factorisation A ~ X Y^T (Theorem 3, Appendix A.5).

X = A Omega, Y = A^T X (X^T X)^{-1}: then X Y^T = X (X^T X)^{-1} X^T A, the projection of A onto the range of A Omega.
That is the randomised range finder of Halko, Martinsson and Tropp (2011) and nothing else; it is exact where
rank(A) <= rank, and otherwise as good as their bound. It costs two passes over A, 4 m n r + O((m + n) r^2).

Here the projection is formed from X = QR as Q Q^T A, never from X^T X, whose condition number is kappa^2: normal
equations lose half the digits.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from nora.factorization.linalg import require_dtype, require_float, require_generator, require_positive, require_rank


class Operator(Protocol):
    """A matrix given by its products with tensors; ``dtype`` is that of the factors wanted."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def matmul(self, M: Tensor) -> Tensor:
        """A M."""

    def rmatmul(self, M: Tensor) -> Tensor:
        """A^T M."""


def factorize(
    A: Tensor | Operator,
    rank: int,
    *,
    generator: torch.Generator,
    xi: float = 1.0,
    power_iterations: int = 0,
    oversampling: int = 0,
) -> tuple[Tensor, Tensor]:
    """X [m, rank] and Y [n, rank] with X Y^T ~ A: the randomised range finder, written as one ScaledGD step.

    A: a dense tensor, a sparse one (COO, CSR, CSC, BSR, BSC), or any object with ``shape``, ``dtype``, ``device``,
    ``matmul`` and ``rmatmul``. With the defaults X is the paper's A Omega, [Omega]_ij ~ N(0, xi^2); the product X Y^T
    does not depend on xi. ``power_iterations`` and ``oversampling`` sharpen the range for a slowly falling spectrum
    (then X has orthonormal columns or is the last sketch). bfloat16: the products with A run in bfloat16, all else in
    float32, and so are the factors.
    """
    product = _product(A)
    m, n = product.shape
    require_rank(rank, m, n)
    require_positive(xi, "xi")
    if power_iterations < 0 or oversampling < 0:
        raise ValueError(
            f"power_iterations, oversampling: given {power_iterations}, {oversampling}, required both >= 0; "
            "use 0 for none"
        )
    width = min(rank + oversampling, m, n)
    drawn_on = require_generator(generator, "factorize").device
    # Drawn in the working dtype, unlike the starts: half of a float32 call would go into float64 draws.
    Omega = torch.randn(n, width, generator=generator, dtype=product.work, device=drawn_on)
    X = product.matmul((xi * Omega).to(product.device))
    # Every non-finite entry of A reaches A Omega, which is read in a fraction of the time that A takes.
    if not bool(torch.isfinite(X).all()):
        require_float(product.entries, "A")
        require_float(X, "A Omega")
    for _ in range(power_iterations):
        # Each half-step is re-orthonormalised: A A^T alone would leave only A's largest directions in the rounding.
        X = product.matmul(torch.linalg.qr(product.rmatmul(torch.linalg.qr(X).Q)).Q)
    Q, R = torch.linalg.qr(X)
    B = product.rmatmul(Q)
    if width > rank:
        W = torch.linalg.svd(B, full_matrices=False).Vh[:rank].mT
        return Q @ W, B @ W
    return X, _solve(B, R)


def _solve(B: Tensor, R: Tensor) -> Tensor:
    """B R^{-T}; where a pivot of R is below rounding (rank > rank(A)), B (R^+)^T.

    A pivot of the size of rounding is no harm: the matching column of B = A^T Q is as small, so Y stays of order 1. A
    higher floor would cut true directions of A (in float32 at m = 2000 it cost 1 % of ||A||).
    """
    pivots = torch.diagonal(R).abs()
    if float(pivots.min()) > torch.finfo(R.dtype).eps * float(pivots.max()):
        Y: Tensor = torch.linalg.solve_triangular(R.mT, B, upper=False, left=False)
    else:
        Y = B @ torch.linalg.pinv(R, rtol=len(R) * torch.finfo(R.dtype).eps).mT
    return Y


class _Matrix:
    """Dense or sparse tensor: products in A's dtype, results in the working one."""

    def __init__(self, A: Tensor) -> None:
        if A.dim() != 2:
            raise ValueError(f"A: given a tensor of shape {tuple(A.shape)}, required a matrix (two dimensions)")
        self.dense = A.layout == torch.strided
        # COO transposes without a copy and multiplies on every device; the compressed layouts do not.
        self.A = A if self.dense else A.to_sparse().coalesce()
        self.entries = A if self.dense else self.A.values()
        require_dtype(self.entries, "A")
        self.shape = (A.shape[0], A.shape[1])
        self.device = A.device
        self.work = torch.float32 if A.dtype == torch.bfloat16 else A.dtype

    def matmul(self, M: Tensor) -> Tensor:
        # (M^T A^T)^T: of two equal products the one that BLAS does faster for a thin M, up to 2.8 times (measured).
        thin = M.to(self.A.dtype)
        return ((thin.mT @ self.A.mT).mT if self.dense else self.A @ thin).to(self.work)

    def rmatmul(self, M: Tensor) -> Tensor:
        thin = M.to(self.A.dtype)
        return ((thin.mT @ self.A).mT if self.dense else self.A.t() @ thin).to(self.work)


class _Wrapped:
    """An operator's products, cast to the working dtype."""

    def __init__(self, A: Operator) -> None:
        if A.dtype not in (torch.float64, torch.float32, torch.bfloat16):
            raise ValueError(f"A: given dtype {A.dtype}, required float64, float32 or bfloat16; declare one of those")
        self.operator, self.entries = A, torch.zeros(1)
        self.shape = (int(A.shape[0]), int(A.shape[1]))
        self.device = A.device
        self.work = torch.float32 if A.dtype == torch.bfloat16 else A.dtype

    def matmul(self, M: Tensor) -> Tensor:
        return self.operator.matmul(M).to(self.work)

    def rmatmul(self, M: Tensor) -> Tensor:
        return self.operator.rmatmul(M).to(self.work)


def _product(A: object) -> _Matrix | _Wrapped:
    if isinstance(A, Tensor):
        return _Matrix(A)
    missing = [name for name in ("shape", "dtype", "device", "matmul", "rmatmul") if getattr(A, name, None) is None]
    if missing:
        raise ValueError(
            f"A: given {type(A).__name__} without {', '.join(missing)}, required a torch tensor or an operator with "
            "shape, dtype, device, matmul and rmatmul; use torch.from_numpy or torch.sparse_coo_tensor"
        )
    return _Wrapped(cast(Operator, A))
