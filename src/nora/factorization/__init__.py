"""Matrix factorisation: the paper's theory, executable.

Problem, start, solver and loop are four things:

    problem = Symmetric.make(m=1000, spectrum=plateau(19, tail=(0.01,)), rank=20, generator=generator(0, "basis"))
    start = starts.load("nystrom")(problem, generator=generator(0, "init"), xi=0.1)
    trace = iterate(problem, solvers.load("scaled_gd")(eta=0.5), start, budget=60)

What each panel of the paper shows (Appendix E.1; m = 1000, float64; where the paper names no value, ours follow "~"):

    Figure 1(a)  plateau(19, tail=(0.01,)), rank 20; error. gd eta=0.01 from small zeta~1e-3 (3000 iterations);
                 scaled_gd eta=0.5 from small zeta~1e-3 and from nystrom xi~0.1 (60)
    Figure 1(b)  the same A, scaled_gd eta=0.5; error. Solid: nystrom xi~1e-3, 1e-2, 1e-1, 1, 10 with one direction of
                 Omega; dotted: nystrom_perturbed xi~0.1, xi_n~1e-8, 1e-6, 1e-4 (60)
    Figure 1(c)  plateau(37, tail=(0.05, 0.025, 0.01)), rank 20; weak. scaled_gd from nystrom xi~0.1 with
                 eta~0.9, 0.5, 0.1, 0.05, 0.01 and Staircase(values=(0.1, 0.01), length~60) (200)
    Figure 4(a)  plateau(19, tail=(0.01,)), rank 60; error. gd eta=0.01 from small; scaled_gd_lambda eta=0.5,
                 damping=0.01 from small (and, beyond the paper, from nystrom); scaled_gd_pinv eta=0.5 from nystrom
    Figure 4(b)  the same; scaled_gd_pinv eta=0.5, rcond 1e-10: the starts of Figure 1(b)

Every theorem is checked in ``theory``, and ``factorize`` is one step
of ScaledGD used as a factorisation (Appendix A.5).
"""

from nora.factorization import solvers as solvers
from nora.factorization import starts as starts
from nora.factorization.dense import DenseAsymmetric as DenseAsymmetric
from nora.factorization.dense import DenseSymmetric as DenseSymmetric
from nora.factorization.linalg import State as State
from nora.factorization.loop import StopReason as StopReason
from nora.factorization.loop import Trace as Trace
from nora.factorization.loop import iterate as iterate
from nora.factorization.one_step import factorize as factorize
from nora.factorization.problems import Asymmetric as Asymmetric
from nora.factorization.problems import Problem as Problem
from nora.factorization.problems import Symmetric as Symmetric
from nora.factorization.problems import geometric as geometric
from nora.factorization.problems import plateau as plateau
from nora.factorization.solvers import Staircase as Staircase
