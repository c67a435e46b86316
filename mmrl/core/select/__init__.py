"""Which rows are trained on, decided after the advantages."""
