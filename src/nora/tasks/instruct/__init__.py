"""Tasks that train on instructions and score generated answers: a file says which sets are read and how."""
