"""Further loss terms per decision: each is reduced and counted on its own."""
