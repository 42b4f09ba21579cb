"""Social IQa, as LLM-Adapters asks it."""

FOLDER = "social_i_qa"
ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")
NUM_TRAIN_ROWS = 33410
NUM_TEST_ROWS = 1954
