"""The draft handed over: one format a file, each with the engine that proves it; the model card; the upload."""
