"""WinoGrande (XL), as LLM-Adapters asks it: "Please choose the correct answer to fill in the blank to complete the given sentence: …"."""

FOLDER = "winogrande"
ANSWERS = ("option1", "option2")
NUM_TRAIN_ROWS = 63238
NUM_TEST_ROWS = 1267
