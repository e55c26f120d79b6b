"""The engine: a Llama-shaped model laid out for decoding, with a cache in pages that rows share."""
