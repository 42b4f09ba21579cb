"""One file per layout of a table or figure: ``build(target, records, *, checkout)``. The folder is the registry."""
