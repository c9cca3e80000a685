"""`tgo-trl score`: adds the scores of reward models to a data set."""
