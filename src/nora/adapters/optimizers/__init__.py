"""One file per optimiser; the folder is the registry.

Each file is a module with either ``KEYS``, the settings of the method that the name stands for (what the loop does
itself), or ``make(model, *, lr, betas, eps, weight_decay, …) -> Optimizer`` and ``OPTIONS``, the keys of the method it
takes with their defaults.
"""
