"""Decoding by unmasking: orders, rules of how many, blocks, caches."""
