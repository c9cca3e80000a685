"""What is said to people, and what is not: failures in one line, values cut to size, secrets left out."""
