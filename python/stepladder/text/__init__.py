"""Text and token ids: tokenizer files, chat templates, prompts, detokenization, stop strings."""
