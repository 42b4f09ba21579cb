"""ARC-Challenge, as LLM-Adapters asks it."""

FOLDER = "ARC-Challenge"
ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")
NUM_TRAIN_ROWS = 1119
NUM_TEST_ROWS = 1172
