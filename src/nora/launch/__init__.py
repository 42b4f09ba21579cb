"""What is to be run and running it: the plan (pure) and the places runs go to. Never imports torch itself."""
