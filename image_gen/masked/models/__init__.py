"""Token predictors behind one interface: aMUSEd's layout of diffusers, and a compact transformer of our own."""
