"""Models on disk: the catalog, where files come from, and the store that keeps them."""
