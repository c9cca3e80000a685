"""The commands of `tgo-trl`, a folder each: its settings, which load nothing heavy, beside what is done with them."""
