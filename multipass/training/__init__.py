"""From patient files to a checkpoint: batches, augmentation, loss, optimizer. Inference needs none
of it."""
