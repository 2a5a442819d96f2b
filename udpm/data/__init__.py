"""Sources, prepared stores, level caches, batches and sample sets. Data flows source -> store -> caches -> batches."""
