"""MetaMathQA to train on, GSM8K to test on (PiSSA's protocol)."""
