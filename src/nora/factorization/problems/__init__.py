"""Problems: what is minimised. Exact-, over- and under-parametrised is only rank against r_A.

symmetric   min over X [m, r]            (1/4) ||X X^T - A||_F^2    (1)
asymmetric  min over X [m, r], Y [n, r]  (1/2) ||X Y^T - A||_F^2    (4)
"""

from nora.factorization.problems.asymmetric import Asymmetric as Asymmetric
from nora.factorization.problems.base import Problem as Problem
from nora.factorization.problems.dense import DenseAsymmetric as DenseAsymmetric
from nora.factorization.problems.dense import DenseSymmetric as DenseSymmetric
from nora.factorization.problems.spectra import geometric as geometric
from nora.factorization.problems.spectra import plateau as plateau
from nora.factorization.problems.symmetric import Symmetric as Symmetric
