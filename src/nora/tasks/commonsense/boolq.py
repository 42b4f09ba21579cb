"""BoolQ without its passage, as LLM-Adapters asks it."""

FOLDER = "boolq"
ANSWERS = ("true", "false")
NUM_TRAIN_ROWS = 9427
NUM_TEST_ROWS = 3270
