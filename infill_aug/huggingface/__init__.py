"""Around the ``Trainer`` of Hugging Face: a collator that augments, and a callback that moves the threshold."""
