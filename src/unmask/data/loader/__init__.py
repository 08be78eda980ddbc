"""From a source to batches: the order of the samples, what each becomes, and who makes them."""
