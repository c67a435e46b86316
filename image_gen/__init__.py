"""Image models: flow matching (`image_gen.flow`). Importing this package loads no torch."""
