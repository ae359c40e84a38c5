"""A model on a server: `edgevlm serve` here or on another device, asked as a local one is."""
