"""Optimizers whose step is one kernel launch."""
