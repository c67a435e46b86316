"""Published video question sets as records, and tools that change such files. Loads no torch."""
