"""The decoder layer of the Llama family with its backward pass written out: the same numbers, less time and memory."""
