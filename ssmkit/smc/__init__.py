"""Sequential Monte Carlo: one Feynman–Kac loop, and the recipes that run in it."""
