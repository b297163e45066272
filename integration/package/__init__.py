"""What `test-package` is made of."""
