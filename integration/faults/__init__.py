"""Faults at every phase of a move, and what has to be true after each; run by integration/chaos."""
