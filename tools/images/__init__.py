"""Container images without a container engine: the format, what the product's images hold, and how nodes of a kind cluster get them."""
