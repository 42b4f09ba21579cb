"""HellaSwag, as LLM-Adapters asks it."""

FOLDER = "hellaswag"
ANSWERS = ("ending1", "ending2", "ending3", "ending4")
NUM_TRAIN_ROWS = 39905
NUM_TEST_ROWS = 10042
