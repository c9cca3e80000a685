"""From scores to labels and confidence weights: thresholds, weights, and the rule that joins them. Torch only."""

NORMALIZATIONS = ("none", "zscore", "robust")
"""Of scores; here, where those who check settings find them without loading torch."""
