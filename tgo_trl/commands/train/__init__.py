"""`tgo-trl train`: trains on a scored data set."""
