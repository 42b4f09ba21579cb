"""One file per variant of LoRA; the folder is the registry.

Each file is a module of literals: ``PEFT``, what it sets in PEFT's ``LoraConfig``; where it has them ``FREEZES``, the
factor that is not trained, and ``OPTIMIZER``, the file of ``optimizers/`` that steps it.
"""
