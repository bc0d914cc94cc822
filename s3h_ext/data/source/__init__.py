"""Sources of batches: what draws, decodes and renders them."""
