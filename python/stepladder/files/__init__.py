"""Model files: where they are, GGUF read, formats converted and quantized, directories written."""
