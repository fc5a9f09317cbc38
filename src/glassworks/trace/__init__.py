"""How people write graphs: symbolic values, blocks, and the model they hang on. Given a Backend; imports none."""
