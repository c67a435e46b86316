"""A model, prompts, rewards and judges that ship with the package: handwritten digits drawn by a tiny SD3 transformer.

Importing this package loads no torch.
"""
