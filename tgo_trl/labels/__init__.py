"""From scores to labels and confidence weights: thresholds, weights, and the rule that joins them. Torch only."""

NORMALIZATIONS = ("none", "zscore", "robust")
"""Of scores; these names are here, where those who check settings find them without loading torch."""

COMBINATIONS = ("sum", "vote")
"""How several columns of scores become one."""
