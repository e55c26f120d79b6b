"""GGUF: one file with weights, tokenizer and settings, as llama.cpp reads it."""
