"""`make demo` and `make real`: run the notebooks, check the claims of the method, compare with reference runs."""
