"""Records: what a training example is, and how it is read and checked."""
