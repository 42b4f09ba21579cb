"""OpenBookQA, as LLM-Adapters asks it."""

FOLDER = "openbookqa"
ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")
NUM_TRAIN_ROWS = 4957
NUM_TEST_ROWS = 500
