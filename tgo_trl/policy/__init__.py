"""What is trained, what it is compared with, and how both are called: networks, adapters, references, draws."""
