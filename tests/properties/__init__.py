"""What holds for any input: hypothesis draws them, the same ones every time."""
