"""What Godwit costs beside others: the shim (integration/bench-shim) and the move (integration/bench-move)."""
