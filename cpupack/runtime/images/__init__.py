"""From files, bytes and arrays to the tensor that the model takes."""
