"""The lake: tables that the stages hand to each other, as atomic daily partitions of Parquet."""
