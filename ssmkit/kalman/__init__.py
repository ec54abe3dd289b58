"""Gaussian filtering and smoothing: one filter, three ways to linearise, two ways to carry it."""
