"""``NAME batch``: runs the model over a directory or Parquet files, and writes Parquet. Each input exactly once."""
