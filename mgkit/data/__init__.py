"""Files -> images -> batches: decoding, folders and their layouts, lists with classes, loaders."""
