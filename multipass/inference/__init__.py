"""The cases of run_inference.py, one by one, several at a time, or on a cluster. Options are the
script's: this room decides nothing."""
