"""Statements about a policy: bounds, betting, certificates, comparisons, perturbed worlds."""
