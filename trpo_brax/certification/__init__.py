"""Statements about a policy: bounds, betting, certificates, perturbed worlds."""
