"""The eight few-shot tasks of the paper's Table 2, with the prompts of the MeZO protocol."""
