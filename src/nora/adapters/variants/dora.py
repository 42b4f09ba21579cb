"""DoRA (arXiv 2402.09353): the columns' lengths of W + s B A are trained apart. PEFT's."""

PEFT = {"use_dora": True}
