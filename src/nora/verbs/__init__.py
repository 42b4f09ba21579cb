"""What each verb does with what was typed, by subject: parsed arguments → exit code. Imports wait until asked for."""
