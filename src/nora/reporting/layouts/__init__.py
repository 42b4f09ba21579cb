"""One file per layout of a table or figure: ``build(target, records)``. The folder is the registry."""
