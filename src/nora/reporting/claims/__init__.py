"""The paper's sentences as data (conf/claims.yaml), each with a verdict from the records."""
