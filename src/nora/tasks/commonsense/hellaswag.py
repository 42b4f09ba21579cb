"""HellaSwag, as LLM-Adapters asks it: "Please choose the correct ending to complete the given sentence: …"."""

FOLDER = "hellaswag"
ANSWERS = ("ending1", "ending2", "ending3", "ending4")
NUM_TRAIN_ROWS = 39905
NUM_TEST_ROWS = 10042
