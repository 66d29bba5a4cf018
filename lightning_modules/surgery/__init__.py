"""What is done to a model: replaced attention and its host, LoRA, and what of it is trained."""
