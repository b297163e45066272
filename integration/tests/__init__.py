"""End-to-end tests; run by integration/run-tests, which brings the lab up for them."""
