"""WinoGrande (XL), as LLM-Adapters asks it."""

FOLDER = "winogrande"
ANSWERS = ("option1", "option2")
NUM_TRAIN_ROWS = 63238
NUM_TEST_ROWS = 1267
