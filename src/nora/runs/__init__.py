"""From a composed config to a record: spec, store, kinds of run, execution."""
