"""`tgo-trl generate`: images of prompts, as a data set."""
