"""Trainings and evaluations exactly as published, leaks included and named, beside honest ones."""
