"""Tokenizers that others trained: a file per model of diffusers or transformers, each behind the same contract."""
