"""Networks, losses and training: from a data set to a run bundle."""
