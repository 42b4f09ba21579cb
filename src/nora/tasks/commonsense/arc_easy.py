"""ARC-Easy, as LLM-Adapters asks it."""

FOLDER = "ARC-Easy"
ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")
NUM_TRAIN_ROWS = 2251
NUM_TEST_ROWS = 2376
