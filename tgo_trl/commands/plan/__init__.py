"""`tgo-trl plan`: what a training run would take, and what it would be refused for."""
