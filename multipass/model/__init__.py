"""The network, its passes over a scan, and the checkpoint they travel in. No training, no files of
results."""
