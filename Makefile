# The two commands are `make demo` and `make test`; README.md says what they do.
