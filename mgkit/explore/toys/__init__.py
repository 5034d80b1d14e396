"""Toy examples of 00 and 01: one batch on a plane, and an SVM on repeated samples."""
