"""Training batches from datasets: what there is to read, in which order, what is drawn anew each epoch, and workers."""
