"""What finished runs measured: reading output trees, what is averaged, statistics, tables, published numbers."""
