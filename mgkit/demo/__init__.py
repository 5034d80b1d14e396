"""`make demo` and `make real`: run the notebooks, check the claims, compare with the reference runs."""
