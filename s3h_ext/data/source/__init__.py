"""Sources of batches: drawing, decoding and rendering."""
