"""Counter-examples in rationals: each function verifies its inequality exactly and returns it as text."""

from __future__ import annotations

from fractions import Fraction as F

Vector = tuple[F, F]


def _step(phi: Vector, s: Vector, eta: F) -> Vector:
    """phi+ = (1 - eta) phi + eta Sigma phi / |phi|^2: ScaledGD for r = 1, r_A = 2, in the basis of A."""
    square = phi[0] ** 2 + phi[1] ** 2
    first, second = ((1 - eta) * x + eta * v * x / square for x, v in zip(phi, s, strict=True))
    return first, second


def _weak(phi: Vector, s: Vector) -> F:
    """B = phi^T Sigma^{-1} phi."""
    return phi[0] ** 2 / s[0] + phi[1] ** 2 / s[1]


def step_above_one() -> str:
    """eta = 4/3 from X_0 = 2: X_1 = 0, against Lemma 2's lower bound."""
    eta, b0 = F(4, 3), F(4)
    b1 = ((1 - eta) * b0 + eta) ** 2 / b0
    bound = (1 - eta) ** 2 * b0 + (1 - eta) - (1 - eta) ** 3
    assert b1 == 0 < bound
    return f"A = 1, X_0 = 2, eta = 4/3: X_1 = 0, so sigma(X_1^T X_1) = 0 < {bound}"


def step_above_one_under() -> str:
    """The same for Lemma 9, r = 1 < r_A = 2."""
    eta, s, phi = F(4, 3), (F(1), F(1, 2)), (F(2), F(0))
    after = _step(phi, s, eta)
    bound = (1 - eta) - (1 - eta) ** 3 + (1 - eta) ** 2 * _weak(phi, s)
    assert after == (F(0), F(0)) and bound > 0
    return f"A = diag(1, 1/2), X_0 = (2, 0), eta = 4/3: X_1 = 0, so B_1 = 0 < {bound}, and the next step is undefined"


def step_one_never_settles() -> str:
    """eta = 1: a two-cycle, so Lemma 5's limit does not exist."""
    s, phi = (F(1), F(1, 2)), (F(2), F(0))
    once = _step(phi, s, F(1))
    twice = _step(once, s, F(1))
    assert once == (F(1, 2), F(0)) and twice == phi
    return "A = diag(1, 1/2), X_0 = (2, 0), eta = 1: X_t alternates between (2, 0) and (1/2, 0), B_t between 4 and 1/4"


def small_start_overshoots() -> str:
    """Lemma 7's explicit bound without sigma_r(B_0) >= sigma_r(A) / 3."""
    eta, b0 = F(1, 2), F(1, 100)
    b1 = ((1 - eta) * b0 + eta) ** 2 / b0
    bound = (1 + 3) * eta + (1 - eta) * abs(b0 - 1)
    assert abs(b1 - 1) > bound
    return f"A = 1 (kappa = 1), X_0 = 1/10, eta = 1/2: |X_1^2 - A| = {b1 - 1} > {bound}"


def no_uniform_count() -> str:
    """Theorem 1's T_1 cannot be free of the scale of X_0: b_{t+1} > b_t / 4 at eta = 1/2."""
    for T in range(1, 9):
        b = F(16) * 4**T
        for _ in range(T):
            b = (b + 2 + 1 / b) / 4
        assert b - 1 > 15
    return "A = 1 (kappa = 1), eta = 1/2, X_0 = 2^(T+2): |X_T^2 - A| > 15 after T steps, for every T"


def lemma_10() -> str:
    """r = 1: (phi^T Sigma phi)(phi^T Sigma^{-1} phi) <= |phi|^4 is the reverse of Cauchy and Schwarz."""
    s, phi = (F(1), F(1, 2)), (F(1), F(1))
    square = phi[0] ** 2 + phi[1] ** 2
    left = (s[0] * phi[0] ** 2 + s[1] * phi[1] ** 2) / square**2
    right = 1 / _weak(phi, s)
    assert left > right
    return f"A = diag(1, 1/2), X = (1, 1), r = 1: ||Theta^T Sigma Theta|| = {left} > r / sigma_r(B) = {right}"


def bound_17() -> str:
    """Theorem 2's explicit bound with eta <= 2/3 and B_0 >= 1/3."""
    eta, s, phi = F(1, 10), (F(1), F(1, 10_000)), (F(1, 100), F(1, 100))
    b0, b1 = _weak(phi, s), _weak(_step(phi, s, eta), s)
    bound = eta + 3 * eta + (1 - eta) * abs(b0 - 1)
    assert b0 > F(1, 3) and abs(b1 - 1) > bound
    return (
        f"A = diag(1, 1/10000), X_0 = (1/100, 1/100), eta = 1/10: B_0 = {b0}, |B_1 - 1| = {b1 - 1} (about "
        f"{float(b1 - 1):.1f}) > {bound} (about {float(bound):.2f})"
    )


def overshoot(j: int) -> F:
    """|B_1 - 1| from A = diag(1, 100^-j), X_0 = 10^-j (1, 1), eta = 1/10: B_0 is within 100^-j of optimal."""
    s, phi = (F(1), F(1, 100**j)), (F(1, 10**j), F(1, 10**j))
    assert abs(_weak(phi, s) - 1) == F(1, 100**j)
    return abs(_weak(_step(phi, s, F(1, 10)), s) - 1)


def weak_but_not_optimal() -> str:
    """Definition 1 is strictly weaker than global optimality."""
    s, phi = (F(1), F(1, 4)), (F(0), F(1, 2))
    assert _weak(phi, s) == 1
    assert (phi[0] ** 2 - s[0]) ** 2 + (phi[1] ** 2 - s[1]) ** 2 == 1 > s[1] ** 2
    return "A = diag(1, 1/4), X = (0, 1/2) is weakly optimal with ||XX^T - A|| = 1, the best being 1/4"
