"""`make demo`: run the notebooks, check the claims of the method, compare with the reference run."""
