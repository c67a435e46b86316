"""Estimators of how likely a completion is, as views of it: what is masked, what is read, with which weight."""
