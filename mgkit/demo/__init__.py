"""`make demo`: the notebooks run, the claims of the method, the comparison with the reference run."""
