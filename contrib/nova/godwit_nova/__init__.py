"""Docker containers as Nova instances, moved live by Godwit's agents."""
