"""The shim's cost beside the stock shim's; run by integration/bench-shim, which brings a lab up for it."""
