"""Where a graph meets a forward pass: the runtime seam, frames, the one interpreter, rows."""
