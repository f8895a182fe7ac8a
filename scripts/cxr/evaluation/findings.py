"""Measures classifiers of several findings; arrays (N, K) have a column per finding."""
