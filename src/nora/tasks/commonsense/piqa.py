"""PIQA, as LLM-Adapters asks it."""

FOLDER = "piqa"
ANSWERS = ("solution1", "solution2")
NUM_TRAIN_ROWS = 16113
NUM_TEST_ROWS = 1838
