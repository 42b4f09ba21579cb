"""LLM-Adapters' eight commonsense sets: a file each with its folder, its answers and its row counts."""
