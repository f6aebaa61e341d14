"""Learners: the FLARE side of training at one site."""
