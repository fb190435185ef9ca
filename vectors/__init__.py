"""The vector index: chunks of documents, found by their meaning and their words."""
