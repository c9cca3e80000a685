"""The cards of adapters and data sets, which say what they are and where they come from."""
