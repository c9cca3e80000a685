"""From scores to labels and confidence weights: thresholds, weights, and the rule that joins them. Torch only."""
