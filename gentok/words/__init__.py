"""The parts of gentok.tokens, which is what the rest of gentok imports: a file per kind of word."""
